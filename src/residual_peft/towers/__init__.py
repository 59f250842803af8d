"""Where a model keeps its parts, and one run of it."""

__all__ = [
    "anatomy",
    "captures",
    "families",
    "readouts",
    "registry",
    "running",
    "taps",
    "units",
]
