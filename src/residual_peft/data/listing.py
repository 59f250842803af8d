"""Images by name: what some rows of a data set are called, and tables of them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from datasets import Dataset

from ..hub.files import PathLike, atomic_file
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


def write_listing(
    path: PathLike, headers: Sequence[str], rows: Iterable[Sequence[str | int | float]]
) -> None:
    """Write a table of images as CSV, whole or not at all; a path stands there as it is.

    Text stays, a number that is no count has four digits.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(headers)
        for row in rows:
            writer.writerow([f"{x:.4f}" if isinstance(x, float) else as_text(str(x)) for x in row])
