"""Columns of labels -> class numbers, or lists of them, with the names of the classes."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset

from ...errors import ResiDualError
from ..stratification import Labels
from . import labelling_of_column


def class_label_lists(dataset: Dataset, names: Sequence[str], split: str, name: str) -> Dataset:
    """The dataset with its lists of labels as increasing class numbers, each once.

    Lists are of class numbers or of class names; `split` and `name` are for messages.

    Raises:
        ResiDualError: a list that is missing or holds what is no class (names row and split), or
            rows that look like a 0 or 1 per class.
    """
    rows = labels_in(dataset)
    numbers = _in_numbers(rows, names, f"of {name}, split {split},")
    wanted = datasets.List(ClassLabel(names=list(names)))
    if dataset.features["label"] == wanted and numbers == rows:
        return dataset  # a new column would write every image of a selection anew
    return dataset.remove_columns("label").add_column("label", numbers, feature=wanted)


def labels_in(dataset: Dataset) -> list[Any]:
    """The column of labels, without touching the images."""
    return dataset.select_columns(["label"])[:]["label"]


def label_array(dataset: Dataset, classes: int) -> Labels:
    """The labels of a split that has class numbers: (N,), or of lists zeros and ones (N, C)."""
    labelling = labelling_of_column(dataset.features["label"])
    return labelling.array(labels_in(dataset), classes)


def _in_numbers(rows: list[Any], names: Sequence[str], of: str) -> list[list[int]]:
    numbers: list[list[int]] = []
    number_of = {name: number for number, name in enumerate(names)}
    for index, row in enumerate(rows):
        if row is None or None in row:
            what = "no list of labels" if row is None else "an empty place in its list of labels"
            raise ResiDualError(
                f"row {index} {of} has {what}; give an image without labels an empty list, or "
                "remove it."
            )
        found = {number_of.get(label, -1) if isinstance(label, str) else label for label in row}
        if found and not 0 <= min(found) <= max(found) < len(names):
            strange = next(x for x in row if number_of.get(x, x) not in range(len(names)))
            kind = "a class name" if isinstance(strange, str) else f"0 to {len(names) - 1}"
            raise ResiDualError(
                f"row {index} {of} has the label {strange!r}; wanted {kind} ({len(names)} "
                "classes). Correct or remove it."
            )
        numbers.append(sorted(found))
    if rows and all(len(row) == len(names) and set(row) <= {0, 1} for row in rows):
        raise ResiDualError(
            f"the labels {of} are a 0 or 1 per class; wanted the numbers of the classes that an "
            "image has: [i for i, present in enumerate(row) if present]."
        )
    return numbers


def class_labels(dataset: Dataset, names: tuple[str, ...], split: str, name: str) -> Dataset:
    """The dataset with its labels as class numbers; arguments are those of `class_label_lists`.

    Raises:
        ResiDualError: a label that is missing or is no class (names row and split).
    """
    feature = dataset.features["label"]
    labels = labels_in(dataset)
    if None in labels:
        others = labels.count(None) - 1
        raise ResiDualError(
            f"row {labels.index(None)} of {name}, split {split}, has no label"
            + (f", nor have {others:,} after it; remove them." if others else "; remove it.")
        )
    if isinstance(labels[0], str):
        number_of = {label: number for number, label in enumerate(names)}
        numbers = [number_of.get(label, -1) for label in labels]
        if -1 in numbers:
            strange = numbers.index(-1)
            raise ResiDualError(
                f"row {strange} of {name}, split {split}, has the label {labels[strange]!r}, which "
                "is none of the classes."
            )
    else:
        numbers = labels
        check_range(np.asarray(labels), names, split, name)
    kind = ClassLabel(names=list(names))
    if feature == kind:
        return dataset
    # not by a cast, which writes every image anew, beside the data, and believes what lies there
    return dataset.remove_columns("label").add_column("label", numbers, feature=kind)


def check_range(
    labels: npt.NDArray[np.int64], names: tuple[str, ...], split: str, name: str, first: int = 0
) -> None:
    """Raise a ResiDualError that names the first row, counted from `first`, with no such class."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        alike = len(labels) > 1 and (labels == -1).all()  # one alone says nothing of the others
        every = " (as all of that split: it is unlabelled)" if alike else ""
        raise ResiDualError(
            f"row {first + outside[0]} of {name}, split {split}, has the label "
            f"{labels[outside[0]]}{every}; wanted 0 to {len(names) - 1} ({len(names)} classes). "
            "Correct or remove it, or choose other splits with splits={...}."
        )
