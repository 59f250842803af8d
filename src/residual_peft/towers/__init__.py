"""Where a model keeps its parts, and one run of it."""

__all__ = ["anatomy", "families", "inputs", "readouts", "registry", "running", "taps", "units"]
