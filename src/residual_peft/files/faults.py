"""Faults of a disk -> one line that says which path and what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ..errors import ResiDualError
from ..terminal import printable

PathLike = str | os.PathLike[str]

_ROOM = "there is no room left on its disk: free some, or name another place"
_RIGHTS = "this user may not do that there: change the rights, or name another place"
_READ_ONLY = "it lies on a disk that is mounted read-only: name another place"
_NAME = "the name is longer than the disk takes: choose a shorter one"
_NO_FOLDER = "a file lies where a folder should be: move it away, or name another place"
_FOLDER = "a folder lies where a file should be: move it away, or name another place"
_MANY = "too many files are open: close some, or raise the limit (ulimit -n)"
_DISK = "the disk reports a fault: check it and its connection, then try again"
_GONE = "it is missing, or a folder above it is; somebody may have removed it meanwhile"
_MEANING = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: "the quota of disk space is used up: free some, or name another place",
    errno.EFBIG: "the file would be larger than the disk or a limit (ulimit -f) allows",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _READ_ONLY,
    errno.ENAMETOOLONG: _NAME,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: _FOLDER,
    errno.ENOTEMPTY: _FOLDER,
    errno.ELOOP: "links lead round in a circle: mend them",
    errno.EMFILE: _MANY,
    errno.ENFILE: _MANY,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ENXIO: _DISK,
    errno.ENODEV: _DISK,
    errno.ENOENT: _GONE,
    errno.EILSEQ: "the disk does not take such a name: choose another",
}
_INSIDE = re.compile(r"\(os error (\d+)\)")  # how Rust's libraries name what the system said


def disk_fault(
    error: BaseException, path: PathLike | None = None, aside: PathLike | None = None
) -> ResiDualError | None:
    """One line for what a disk refused, or None where something else went wrong.

    Args:
        error: an `OSError`, or what safetensors makes of one.
        path: what was read or written, where the error does not say it by itself.
        aside: a temporary name that stands for `path`.
    """
    number, place = None, None if path is None else os.fsdecode(path)
    if isinstance(error, OSError):
        number = error.errno
        named = error.filename2 or error.filename
        place = os.fsdecode(named) if isinstance(named, str | bytes) else place
        if aside is not None and place is not None and place.startswith(os.fspath(aside)):
            place = os.fsdecode(path or aside)
    elif isinstance(error, SafetensorError) and (found := _INSIDE.search(str(error))):
        number = int(found[1])
    if number not in _MEANING:
        return None
    assert number is not None
    what = "a file" if place is None else f"'{printable(place)}'"
    return ResiDualError(
        f"could not read or write {what} ({os.strerror(number)}): {_MEANING[number]}."
    )


@contextmanager
def disk_faults(path: PathLike | None = None, *, aside: PathLike | None = None) -> Iterator[None]:
    """What the disk refuses in the block becomes a `ResiDualError`; all else stays what it is.

    Args:
        path: what is read or written, where the error does not say it by itself.
        aside: a temporary name that stands for it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if (known := disk_fault(error, path, aside)) is None:
            raise
        raise known from error
