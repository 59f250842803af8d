"""What units wrote -> directions: moments, decomposition, spectra, `SpectralBasis`."""

__all__ = [
    "basis",
    "blas",
    "decomposition",
    "exactness",
    "fingerprint",
    "moments",
    "processes",
    "reading",
    "rows",
    "spectra",
]
