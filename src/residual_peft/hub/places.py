"""Where something is to be written: tried before any work, and what to call a system's refusal.

Imports nothing heavy, so that the command line answers a mistyped folder at once.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ResiDualError, printable
from .aside import aside_name, meant_by, remove

PathLike = str | os.PathLike[str]

LEAST_ROOM = 16 * 2**20  # bytes; the adapter of a small model takes as much
_READING = "reading"
_REASONS = {
    errno.ENOSPC: "no space is left on that disk; make room",
    errno.EDQUOT: "your share of that disk is used up; make room",
    errno.EFBIG: "a file may not grow that large there; raise the limit (ulimit -f)",
    errno.EROFS: "that file system is mounted read-only; name a place that can be written",
    errno.EACCES: "you have no right to do that there; name another place, or ask for the right",
    errno.EPERM: "you have no right to do that there; name another place, or ask for the right",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) or use fewer workers",
    errno.ENOENT: "it is not there any more",
    errno.ENOTDIR: "a part of that path is a file",
    errno.EISDIR: "it is a directory",
    errno.EIO: "the disk does not answer as it should",
    errno.ESTALE: "the network's disk does not answer any more",
    errno.ENXIO: "the disk does not answer as it should",
    errno.ENODEV: "the disk does not answer as it should",
    errno.EEXIST: "something else of that name is there; move it away, or name another place",
    errno.ENOTEMPTY: "a directory of that name is there; move it away, or name another place",
    errno.ELOOP: "links lead round in a circle; mend them",
    errno.ENFILE: "too many files are open on this machine; close some programs",
    errno.EILSEQ: "that disk takes no such name; choose another",
}
# what libraries that are not Python make of the same refusals: safetensors, pyarrow, torch.save
_SAID = re.compile(r"os error (\d+)|errno (\d+)", re.IGNORECASE)
_TEXTS = {
    os.strerror(number).lower(): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
} | {"failed writing file": errno.ENOSPC, ". unexpected pos ": errno.ENOSPC}  # torch.save


def check_place(out: PathLike, room: int = LEAST_ROOM) -> Path:
    """See to it that a directory can be written, by writing there; leaves nothing behind.

    It and those above it may be there or not, and `room` bytes must be free. Its absolute path.

    Raises:
        ResiDualError: a file there or above, no right to write, a read-only file system, or too
            little room.
    """
    target = Path(os.path.abspath(os.path.expanduser(out)))
    try:
        there = next(path for path in target.parents if path.exists())
        if target.exists() and not target.is_dir():
            raise ResiDualError(
                f"wanted a directory to write to, got the file '{target}'; name another output."
            )
        if not there.is_dir():
            raise ResiDualError(
                f"wanted to write '{target}', and '{there}' is a file; name another output."
            )
        _try_writing(target if target.is_dir() else there, target.name)
    except OSError as error:
        raise ResiDualError(f"cannot write '{target}': {reason_of(error)}.") from error
    check_room(there, room, f"'{target}'")
    return target


def check_room(place: Path, room: int, what: str) -> None:
    """Raise a ResiDualError unless so many bytes are free on the disk of a directory."""
    free = shutil.disk_usage(place).free
    if free < room:
        raise ResiDualError(
            f"{what} needs about {in_bytes(room)} of room, and {in_bytes(free)} are free on the "
            f"disk of '{place}'; make room, or name a place on another disk."
        )


def _try_writing(place: Path, name: str) -> None:
    folder = place / aside_name(name)
    try:
        folder.mkdir(mode=0o700)
        (folder / "tried").write_bytes(bytes(4096))
        (folder / "tried").rename(folder / "renamed")
    finally:
        remove(folder)


def reading_place(target: Path) -> Path:
    """The hidden directory where a fit keeps what it has read.

    Beside the output; within it where that alone may be written, as in a container.
    """
    name = f".{target.name}.{_READING}"
    if target.is_dir():
        try:
            _try_writing(target.parent, target.parent.name)
        except OSError:
            return target / name
    return target.with_name(name)


def reason_of(error: BaseException) -> str:
    """What a system's refusal means and what to do, on one line."""
    number, where = number_of(error) or 0, getattr(error, "filename", None)
    said = _REASONS.get(number) or os.strerror(number)
    return f"{said} ('{where}')" if where else said


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
        f"could not read or write {what} ({os.strerror(number)}): {_REASONS[number]}."
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


def number_of(error: BaseException | None) -> int | None:
    """The system's number of a refusal that a user can mend; None where it is none.

    Libraries that are not Python wrap some of them in errors of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno if error.errno in _REASONS else None
        text = str(error).lower()
        found = _SAID.search(text)
        numbers = [int(found[1] or found[2])] if found else []
        numbers += [number for words, number in _TEXTS.items() if words in text]
        if known := [number for number in numbers if number in _REASONS]:
            return known[0]
        error = error.__cause__
    return None


def in_bytes(count: int) -> str:
    """A number of bytes for people.

    >>> in_bytes(3_400_000), in_bytes(12_000_000_000)
    ('3.4 MB', '12 GB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
