"""A classifier's class head with more images, fewer, or another class: exact, from kept sums."""

from ..files import STATISTICS
from .changing import (
    Read,
    add_class,
    change,
    features_of,
    file_digests,
    kept_of,
    numbers_of,
    remove_class,
)
from .kept import KeptStatistics, head_digest, head_of

__all__ = [
    "STATISTICS",
    "KeptStatistics",
    "Read",
    "add_class",
    "change",
    "features_of",
    "file_digests",
    "head_digest",
    "head_of",
    "kept_of",
    "numbers_of",
    "remove_class",
]
