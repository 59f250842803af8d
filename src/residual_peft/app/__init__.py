"""By name: loads what it is named, then calls what takes objects."""

__all__ = [
    "benching",
    "converting",
    "demonstration",
    "explaining",
    "explorer",
    "exporting",
    "fitting",
    "looking",
    "prediction",
    "studies",
    "updating",
]
