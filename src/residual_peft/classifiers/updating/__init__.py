"""A classifier's class head with more images, fewer, or another class: exact, from kept sums."""

from .changing import (
    Read,
    add_class,
    change,
    features_of,
    kept_of,
    remove_class,
)
from .kept import KeptStatistics, head_digest, head_of

__all__ = [
    "KeptStatistics",
    "Read",
    "add_class",
    "change",
    "features_of",
    "head_digest",
    "head_of",
    "kept_of",
    "remove_class",
]
