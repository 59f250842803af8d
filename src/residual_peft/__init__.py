"""ResiDual (arXiv 2411.00246) for Hugging Face: one gain per spectral component of each head."""

__version__ = "0.1.0"
