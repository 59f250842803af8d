"""What may be fitted on the rows of one pass, behind one interface: zero-shot, gains, class heads.

Every method says what it thinks of training images that it did not see, on the same folds for all,
so that `choice` can compare them without a single test image.
"""

from dataclasses import replace

from .class_heads import DISCRIMINANT, LINEAR_MAP, logistic, ridge
from .gains import GAINS, with_gains
from .method import Method, Outcome, tempered
from .rows import Rows, columns_of

METHODS: dict[str, Method] = {
    "zero-shot": Method(
        "texts (or class means) alone",
        lambda rows: Outcome("zero-shot", tempered(rows, rows.zero_shot)[1], 0),
    ),
    "gains": GAINS,
    "map-embedding": LINEAR_MAP,
    "ridge-embedding": ridge("ridge-embedding", "embedding"),
    "logistic-embedding": logistic("logistic-embedding", "embedding"),
    "discriminant": DISCRIMINANT,
    "ridge-heads": ridge("ridge-heads", "coordinates", ("head",)),
    "ridge": ridge("ridge", "coordinates"),
    "logistic": replace(logistic("logistic", "coordinates"), tried=False),
}
"""By name, in the order of a table."""

__all__ = ["METHODS", "Method", "Outcome", "Rows", "columns_of", "with_gains"]
