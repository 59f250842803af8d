"""What units wrote -> directions: moments, decomposition, spectra, `SpectralBasis`."""

__all__ = [
    "accumulator",
    "basis",
    "blas",
    "decomposition",
    "exactness",
    "fingerprint",
    "moments",
    "processes",
    "reading",
    "rows",
    "saved",
    "spectra",
]
