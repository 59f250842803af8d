"""One label per image, or several: all that depends on which of the two, behind one interface.

Data, classifiers, objectives and reports hold a `Labelling` and ask it, where they would else have
to know which. Labels are class numbers (N,), or with several per image zeros and ones (N, C).
"""

from typing import Any

from ...errors import ResiDualError
from .given import numbers_of
from .many import ManyLabels
from .one import OneLabel

Labelling = OneLabel | ManyLabels
"""`OneLabel` says what each method is for."""

ONE_LABEL, MANY_LABELS = OneLabel(), ManyLabels()

__all__ = [
    "MANY_LABELS",
    "ONE_LABEL",
    "Labelling",
    "ManyLabels",
    "OneLabel",
    "check_same",
    "label_item",
    "labelling_in",
    "labelling_of",
    "labelling_of_column",
    "labelling_of_loss",
    "numbers_of",
    "other_than",
]


def labelling_of(multi_label: bool) -> Labelling:
    """That of a flag: whether an image may have several labels, or none."""
    return MANY_LABELS if multi_label else ONE_LABEL


def other_than(labelling: Labelling) -> Labelling:
    """Of the two the other."""
    return labelling_of(not labelling.multi_label)


def labelling_in(labels: Any) -> Labelling:
    """That of labels (N,) or (N, C)."""
    return labelling_of(labels.ndim == 2)


def labelling_of_column(feature: Any) -> Labelling:
    """That of a column of a `datasets.Dataset`, by its feature."""
    return labelling_of(MANY_LABELS.item(feature) is not None)


def label_item(feature: Any) -> Any:
    """What a column says of each label, single or in a list."""
    return labelling_of_column(feature).item(feature)


def labelling_of_loss(loss: str) -> Labelling:
    """That of a loss, "softmax" or "sigmoid"."""
    return labelling_of(loss == MANY_LABELS.loss_name)


def check_same(wanted: Labelling, got: Labelling, remedy: str) -> None:
    """Raise a ResiDualError where data or a classifier are not of the wanted labelling."""
    if got is not wanted:
        raise ResiDualError(
            f"wanted {wanted.words} per image, got {got.words} per image: {remedy}."
        )
