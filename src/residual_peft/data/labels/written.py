"""Labels as tables and frames have them -> text, or numbers, or lists of these."""

from collections.abc import Iterable
from typing import Any

from ...errors import ResiDualError, short

_SEVERAL = ("labels", "tags")  # columns whose text may hold several, between these:
_BETWEEN = "|;"
_LISTS = (list, tuple, set, frozenset)


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
    # nor is NaN a class
    values = [None if isinstance(v, float) and v != v else v for v in values]
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
    """A label, or a name of a group, as text; whole numbers without a point, lists item by item."""
    if value is None or isinstance(value, _LISTS):
        return value if value is None else [text_of(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
