"""A file is looked at before it is opened, and its size is believed before its content."""

import difflib
import os
import stat
from pathlib import Path

from ...errors import ResiDualError, printable
from ..places import PathLike, disk_faults

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def path_of(path: PathLike) -> Path:
    """A path with `~` as the user's home, as a shell has it."""
    return Path(os.path.expanduser(Path(path)))  # Path's own refuses the home of nobody


def name_of(path: PathLike) -> str:
    """The last part of a path, and the folder's own name for '.' and '..'.

    >>> name_of("my/photos"), name_of("my/photos/.."), name_of("/")
    ('photos', 'my', '/')
    """
    whole = Path(os.path.abspath(path_of(path)))  # not resolved: a link is called as it is named
    return whole.name or str(whole)


def near_miss(name: PathLike) -> str:
    """For a message: what else lies there and is called nearly so, in brackets; empty if none."""
    path = path_of(name)
    try:
        there = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" (did you mean {quoted(path.parent / near[0])}?)" if near else ""


def file_size(path: PathLike, what: str = "file") -> int:
    """The bytes of a regular file, or of the one that a link leads to; nothing is opened.

    A pipe would hold up whoever opens it, and a device such as /dev/zero never ends.

    Raises:
        ResiDualError: there is none, it may not be looked at, or it is of another kind.
    """
    with disk_faults(path):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            raise ResiDualError(f"wanted the {what} {quoted(path)}, which is missing.") from None
        except ValueError:  # a null byte, or what the file system cannot spell
            raise ResiDualError(f"wanted the {what} {quoted(path)}: none is called so.") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ResiDualError(f"wanted the {what} {quoted(path)} as a plain file, got {kind}.")
    return found.st_size


def read_bytes(path: PathLike, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        ResiDualError: it is missing, larger, or no regular file.
    """
    size = file_size(path)
    if size > most:
        raise ResiDualError(
            f"wanted {quoted(path)} of at most {most:,} bytes, got one of {size:,}; this "
            "package wrote no such file."
        )
    # not to wait for a pipe that has taken the file's place since
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with disk_faults(path), os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ResiDualError(f"wanted {quoted(path)} as a plain file, got something else.")
        return file.read(size)


def quoted(path: PathLike) -> str:
    """A path as a message names it."""
    return f"'{printable(os.fspath(path))}'"


def is_folder(path: PathLike) -> bool:
    """Whether a folder lies there; a name that no folder can have is none."""
    return os.path.isdir(Path(path))  # Path's own raises where a name is too long


def is_file(path: PathLike) -> bool:
    """Whether a regular file lies there; a name that no file can have is none."""
    return os.path.isfile(Path(path))


def inside(path: PathLike, folder: PathLike) -> bool:
    """Whether a path lies in a folder once all links have been followed."""
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, names that cannot be
        return False
