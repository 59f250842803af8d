"""Columns of labels: as tables have them -> text or numbers, and these -> class numbers."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset

from ...errors import ResiDualError, short
from ..class_names import composed
from ..stratification import Labels
from . import label_item, labelling_of_column

_SEVERAL = ("labels", "tags")  # columns whose text may hold several, between these:
_BETWEEN = "|;"
_LISTS = (list, tuple, set, frozenset)


def with_class_numbers(dataset: Dataset, names: tuple[str, ...], split: str, name: str) -> Dataset:
    """The dataset with its labels as class numbers, or lists of increasing ones, each once.

    They are class numbers or class names; `split` and `name` are for messages.

    Raises:
        ResiDualError: a label or a list of them that is missing or holds what is no class (names
            row and split), or lists that look like a 0 or 1 per class.
    """
    feature, labels = dataset.features["label"], labels_in(dataset)
    labelling = labelling_of_column(feature)
    in_numbers = _lists_in_numbers if labelling.multi_label else _in_numbers
    numbers: list[Any] = in_numbers(labels, names, split, name)
    kind = labelling.feature(ClassLabel(names=list(names)))
    if feature == kind and numbers == labels:
        return dataset
    # not by a cast, which writes every image anew, beside the data, and believes what lies there
    return dataset.remove_columns("label").add_column("label", numbers, feature=kind)


def labels_in(dataset: Dataset) -> list[Any]:
    """The column of labels, without touching the images."""
    return dataset.select_columns(["label"])[:]["label"]


def in_texts(dataset: Dataset, split: str, name: str, named: Callable[[str], str] = str) -> Dataset:
    """The dataset with texts for labels: `named` of a class's name; None stays.

    `split` and `name` are for messages.

    Raises:
        ResiDualError: a number that is no class, such as -1 of what is unlabelled.
    """
    feature = dataset.features["label"]
    labelling, names = labelling_of_column(feature), getattr(label_item(feature), "names", None)

    def text(label: Any, row: int) -> str | None:
        if label is None:
            return None
        if names is not None and not 0 <= label < len(names):
            check_range(np.array([label]), tuple(names), split, name, row)
        return named(label if names is None else names[label])

    texts = [
        labelling.mapped(entry, partial(text, row=row))
        for row, entry in enumerate(labels_in(dataset))
    ]
    kind = labelling.feature(datasets.Value("string"))
    return dataset.remove_columns("label").add_column("label", texts, feature=kind)


def label_array(dataset: Dataset, classes: int) -> Labels:
    """The labels of a split that has class numbers: (N,), or of lists zeros and ones (N, C)."""
    return labelling_of_column(dataset.features["label"]).array(labels_in(dataset), classes)


def _lists_in_numbers(
    rows: list[Any], names: Sequence[str], split: str, name: str
) -> list[list[int]]:
    of = f"of {name}, split {split},"
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


def _in_numbers(labels: list[Any], names: tuple[str, ...], split: str, name: str) -> list[int]:
    if None in labels:
        others = labels.count(None) - 1
        raise ResiDualError(
            f"row {labels.index(None)} of {name}, split {split}, has no label"
            + (f", nor have {others:,} after it; remove them." if others else "; remove it.")
        )
    if not isinstance(labels[0], str):
        check_range(np.asarray(labels), names, split, name)
        return labels
    number_of = {label: number for number, label in enumerate(names)}
    numbers = [number_of.get(label, -1) for label in labels]
    if -1 in numbers:
        strange = numbers.index(-1)
        raise ResiDualError(
            f"row {strange} of {name}, split {split}, has the label {labels[strange]!r}, which "
            "is none of the classes."
        )
    return numbers


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


def folded(column: str) -> str:
    """The name of a column as those that are known are written."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def labels_of(values: list[Any], column: str, numbers: bool) -> list[Any]:
    """Labels as text, or lists of it; numbers where they stay. Where some are lists, all are.

    Raises:
        ResiDualError: lists that are a 0 or 1 per class, or were written as text; objects.
    """
    # numpy's and torch's as Python's: pandas reads lists of a parquet file as arrays
    values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    # nor is NaN a class, or nothing
    values = [
        None if (isinstance(v, float) and v != v) or (isinstance(v, str) and not v.strip()) else v
        for v in values
    ]
    texts = [value for value in values if isinstance(value, str)]
    if folded(column) in _SEVERAL and any(mark in text for text in texts for mark in _BETWEEN):
        mark = max(_BETWEEN, key=lambda mark: sum(mark in text for text in texts))
        values = [[] if v is None else [t for t in str(v).split(mark) if t.strip()] for v in values]
    lists_as_text = all(text[:1] + text[-1:] == "[]" for text in texts)
    for row, value in enumerate(values):
        if isinstance(value, dict) or (isinstance(value, str) and lists_as_text):
            raise ResiDualError(
                f"row {row} has the label {short(value)} in the column '{column}'; wanted a name, "
                "or names: a list of them in JSON lines or parquet, in CSV a column 'labels' of "
                "such as 'cat|dog'."
            )
    if any(isinstance(value, _LISTS) for value in values):
        values = [v if v is None or isinstance(v, _LISTS) else [v] for v in values]
    widths = {len(value) if isinstance(value, list | tuple) else 0 for value in values}
    alike = len(widths) == 1 and max(widths) > 1
    if alike and all(each in (0, 1) for value in values for each in value):
        raise ResiDualError(
            f"the labels in the column '{column}' are a 0 or 1 per class; wanted the names of the "
            "classes that an image has: [n for n, there in zip(names, row) if there]."
        )
    if numbers and all(_is_number(each) for value in values for each in each_of(value)):
        return [_number(value) for value in values]
    return [text_of(value) for value in values]


def each_of(value: Any) -> Iterable[Any]:
    """The labels of an entry: those of a list, one, or none."""
    return value if isinstance(value, _LISTS) else () if value is None else (value,)


def _number(value: Any) -> Any:
    """What is a number by `_is_number`, or a list of such, as whole numbers."""
    if value is None or isinstance(value, _LISTS):
        return value if value is None else [_number(each) for each in value]
    return int(str(value).strip().removesuffix(".0"))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    return str(value).strip().removesuffix(".0").removeprefix("-").isdecimal()


def text_of(value: Any) -> Any:
    """A label, or a name of a group, as text; whole numbers without a point, lists item by item.

    What looks alike is: spaces around it go, and letters are `composed`.
    """
    if value is None or isinstance(value, _LISTS):
        return value if value is None else [text_of(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return composed(str(value).strip())
