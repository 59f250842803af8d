"""Several labels per image: a column of lists, and the zeros and ones (N, C) that it stands for."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset

from ..errors import ResiDualError


def item_of(feature: Any) -> Any:
    """What a list of labels holds; None where the feature is no list."""
    return feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else None


def label_lists(dataset: Dataset, names: Sequence[str], split: str, name: str) -> Dataset:
    """The dataset with its lists of labels as increasing class numbers, each once.

    Args:
        dataset: with a column `label` of lists of class numbers or of class names.
        names: of the C classes.
        split: for messages.
        name: of the data, for messages.

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


def multi_hot(rows: Sequence[Sequence[int]], classes: int) -> npt.NDArray[np.uint8]:
    """Class numbers by image -> zeros and ones (N, C).

    >>> multi_hot([[0, 2], []], 3).tolist()
    [[1, 0, 1], [0, 0, 0]]
    """
    found = np.zeros((len(rows), classes), dtype=np.uint8)
    images = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    found[images, [number for row in rows for number in row]] = 1
    return found


def labels_in(dataset: Dataset) -> list[Any]:
    """The labels of all rows, without touching the images."""
    return dataset.select_columns(["label"])[:]["label"]


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
