"""Images that were left out: what they are called, why, and a table of them."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import printable
from ..hub.files import PathLike, atomic_file

_ROW = re.compile(r"(row|image) \d+( of .*)?")  # instead of a path


@dataclass(frozen=True)
class SkippedImage:
    """An image that was left out.

    Attributes:
        file: its path, whatever is in it; of an image without one, its split and row.
        reason: why, in a few words that may be printed.
    """

    file: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))

    @property
    def title(self) -> str:
        """The file as messages name it: what a terminal would obey in a path is written out."""
        file = printable(self.file)
        return file if _ROW.fullmatch(file) else f"'{file}'"

    def __str__(self) -> str:
        return f"{self.title} ({self.reason})"


def write_skipped(path: PathLike, skipped: Iterable[SkippedImage]) -> None:
    """Write the images that were left out as CSV, `file` and `reason`, whole or not at all.

    Paths stand there as they are; of one that is not UTF-8 the bytes that are not are written out.
    """
    write_listing(path, ("file", "reason"), ((image.file, image.reason) for image in skipped))


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


def as_text(path: str) -> str:
    """A path in UTF-8: the bytes that are not are written out."""
    return path if is_text(path) else printable(path)


def is_text(path: str) -> bool:
    """Whether a path is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
