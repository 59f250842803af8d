"""Images by name: what some rows of a data set are called."""

from collections.abc import Iterable
from pathlib import PurePath

from datasets import Dataset

from .checking import undecoded
from .skipped import as_text


def files_of(dataset: Dataset, rows: Iterable[int], title: str) -> list[str]:
    """What some images are called: their paths, or of those without one the row of `title`."""
    stored = undecoded(dataset)
    images = [(row, stored[row]["image"] or {}) for row in rows]
    return [as_text(image.get("path") or f"row {row} of {title}") for row, image in images]


def short_name(file: str) -> str:
    """A file's name and its folder's: what people know it by, wherever it lies.

    >>> short_name("/home/me/photos/cats/1.png"), short_name("row 3 of the test split")
    ('cats/1.png', 'row 3 of the test split')
    """
    return "/".join(part for part in PurePath(file).parts[-2:] if part != "/")
