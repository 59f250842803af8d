"""Faults of a disk -> one line that says which path and what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ResiDualError, printable
from ..aside import meant_by
from ..places import meaning_of, number_of

PathLike = str | os.PathLike[str]


def disk_fault(error: BaseException, path: PathLike | None = None) -> ResiDualError | None:
    """One line for what a disk refused, or None where something else went wrong.

    Of an `OSError`, or what safetensors or torch.save make of one; `path` where the error does not
    say it by itself.
    """
    if (number := number_of(error)) is None:
        return None
    place = None if path is None else os.fsdecode(path)
    if isinstance(error, OSError):
        named = error.filename2 or error.filename
        place = os.fsdecode(named) if isinstance(named, str | bytes) else place
    what = "a file" if place is None else f"'{printable(meant_by(place))}'"
    return ResiDualError(
        f"could not read or write {what} ({os.strerror(number)}): {meaning_of(number)}."
    )


@contextmanager
def disk_faults(path: PathLike | None = None) -> Iterator[None]:
    """What the disk refuses in the block becomes a `ResiDualError`; all else stays what it is."""
    try:
        yield
    except ResiDualError:
        raise
    except Exception as error:
        if (known := disk_fault(error, path)) is None:
            raise
        raise known from error
