"""One label per image, or several: all that depends on which of the two, behind one interface.

Data, classifiers, objectives and reports hold a `Labelling` and ask it, where they would else have
to know which. Labels are class numbers (N,), or with several per image zeros and ones (N, C).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ResiDualError, short
from .many import ManyLabels
from .one import OneLabel

__all__ = [
    "MANY_LABELS",
    "ONE_LABEL",
    "Labelling",
    "ManyLabels",
    "OneLabel",
    "check_same",
    "columns",
    "label_item",
    "labelling_in",
    "labelling_of",
    "labelling_of_column",
    "labelling_of_loss",
    "numbers_of",
    "other_than",
]

Labelling = OneLabel | ManyLabels
"""`OneLabel` says what each method is for."""

ONE_LABEL, MANY_LABELS = OneLabel(), ManyLabels()


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
    from datasets import LargeList, List

    return labelling_of(isinstance(feature, List | LargeList))


def label_item(feature: Any) -> Any:
    """What a column says of each label, single or in a list."""
    return feature.feature if labelling_of_column(feature).multi_label else feature


def labelling_of_loss(loss: str) -> Labelling:
    """That of a loss, "softmax" or "sigmoid"."""
    return labelling_of(loss == MANY_LABELS.loss_name)


def check_same(expected: Labelling, got: Labelling, remedy: str) -> None:
    """Raise a ResiDualError where data or a classifier are not of the wanted labelling."""
    if got is not expected:
        raise ResiDualError(
            f"wanted {expected.words} per image, got {got.words} per image: {remedy}."
        )


def numbers_of(
    labelling: Labelling, names: Sequence[str], labels: Any, count: int, *, single: bool = False
) -> Tensor:
    """Labels as classes are counted: (n,), or with several labels zeros and ones (n, C).

    `names` are those of the C classes, such as a head's. Given are a name or number for each image,
    with several labels a list of them for each, or zeros and ones (n, C); for a `single` image what
    one has.
    """
    places = {name: place for place, name in enumerate(names)}
    numbers = isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf"
    if numbers and labels.shape[1:]:
        labels = torch.as_tensor(labels)  # whose rows are no lists of numbers
    alone = single and not ((numbers or isinstance(labels, Tensor)) and labels.ndim)
    given = [labels] if alone else labels
    shapeless = not isinstance(given, Iterable) or isinstance(given, str | bytes)  # or of letters
    if shapeless or (isinstance(given, Tensor) and given.ndim not in (1, 2)):
        raise ResiDualError(f"wanted a label for each of {count} images, got {short(labels)}.")
    given = given if isinstance(given, Tensor) else list(given)
    if len(given) != count:
        raise ResiDualError(f"wanted a label for each of {count} images, got {len(given)}.")

    def number(label: Any) -> int:
        found = places.get(label) if isinstance(label, str) else _whole(label)
        if found is None and not isinstance(label, str):
            raise ResiDualError(
                f"wanted a class by its name or its number, 0 to {len(names) - 1}, got "
                f"{short(label)}."
            )
        if found is None or not 0 <= found < len(names):
            raise ResiDualError(
                f"wanted one of these {len(names)} classes, got {short(label)}: add_class takes a "
                "new one."
            )
        return found

    try:
        return labelling.numbered(given, number, len(names))
    except TypeError:  # with several labels, some image's are no list
        raise ResiDualError(
            f"wanted a list of labels for each of {count} images, got {short(given)}."
        ) from None


def _whole(label: Any) -> int | None:
    """A class's number, whatever holds it; None of all else, such as 0.9, NaN or True."""
    try:
        plain = label.item() if hasattr(label, "item") else label
    except (ValueError, RuntimeError):  # of several
        return None
    if isinstance(plain, float) and plain.is_integer():  # as tables have them
        return int(plain)
    return plain if isinstance(plain, int) and not isinstance(plain, bool) else None
