"""Where a model keeps its parts, and one run of it."""

__all__ = ["anatomy", "open_clip", "pooling", "registry", "taps", "units"]
