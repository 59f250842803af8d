"""A zip or tar of images -> a folder with them, unpacked once and kept.

Nothing of an archive is trusted: no links, no devices, no path that leads out of the folder, no
more bytes than its size makes likely or the disk has. Only images and tables are written.
"""

import hashlib
import logging
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import datasets

from ..errors import ResiDualError, counted, printable
from ..hub.files import atomic_directory, file_size, quoted
from .tables import TABLES
from .trees import image_endings

logger = logging.getLogger(__name__)

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MOST_RATIO = 100  # images do not get much smaller; what does is a trap
LEAST_ALLOWED = 2**28  # bytes that any archive may unpack to
MOST_FILES = 5_000_000
_PIECE = 2**20
# RuntimeError is zipfile's of an encrypted member, NotImplementedError of an unknown compression
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OverflowError,
    UnicodeError,
    RuntimeError,
)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its ending."""
    return path.name.lower().endswith(ENDINGS)


def unpacked(path: Path) -> Path:
    """The folder with what is in an archive; unpacked before, where the archive is the same since.

    It lies in the cache of datasets, and may be removed.

    Raises:
        ResiDualError: it is damaged, encrypted, holds a path that leads out of it, unpacks to more
            than it may, or the disk has no room.
    """
    size = file_size(path, "archive")
    status = os.stat(path)
    mark = f"{path.resolve()}\n{size}\n{status.st_mtime_ns}"
    digest = hashlib.sha256(os.fsencode(mark)).hexdigest()[:16]
    root = Path(datasets.config.HF_DATASETS_CACHE) / "residual_peft" / digest
    folder = root / path.name.partition(".")[0]
    if (root / "whole").is_file() and folder.is_dir():
        return folder
    shutil.rmtree(root, ignore_errors=True)
    logger.info("unpacking '%s' into '%s'", printable(path), printable(folder))
    try:
        with atomic_directory(folder) as aside:
            _unpack(path, aside, max(LEAST_ALLOWED, MOST_RATIO * size))
    except _DAMAGED as error:
        raise ResiDualError(
            f"could not unpack {quoted(path)} ({error}): it may be cut short, or encrypted."
        ) from error
    (root / "whole").touch()
    return folder


def _unpack(path: Path, target: Path, allowed: int) -> None:
    wanted = (*image_endings(), *TABLES)
    written, left = 0, 0
    room = shutil.disk_usage(target).free
    for number, (name, size, opened) in enumerate(_members(path), 1):
        parts = _checked(name, path)
        if number > MOST_FILES:
            raise ResiDualError(f"{quoted(path)} holds more than {MOST_FILES:,} files.")
        # what no folder of images shows either, such as __MACOSX and .DS_Store
        hidden = any(part.startswith((".", "__")) for part in parts)
        if hidden or not name.lower().endswith(wanted):
            left += 1
            continue
        if written + size > min(allowed, room):
            raise _too_large(path, allowed, room)
        with opened() as source, _new_file(target.joinpath(*parts), name, path) as copy:
            for piece in iter(lambda: source.read(_PIECE), b""):
                written += len(piece)
                if written > min(allowed, room):  # what a header says of the size may be a lie
                    raise _too_large(path, allowed, room)
                copy.write(piece)
    if left:
        logger.info("%s of '%s' left out: no images or tables", counted(left, "file"), path.name)


def _new_file(place: Path, name: str, path: Path) -> BinaryIO:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return open(place, "xb")
    except (FileExistsError, NotADirectoryError):
        raise ResiDualError(
            f"the archive {quoted(path)} holds '{name}' twice, or as a file and a folder, and "
            "which of them is meant is not to be told: unpack it yourself, and name the folder."
        ) from None


def _too_large(path: Path, allowed: int, room: int) -> ResiDualError:
    if room < allowed:
        return ResiDualError(
            f"{quoted(path)} unpacks to more than the {room:,} bytes that are free on the disk of "
            f"{quoted(datasets.config.HF_DATASETS_CACHE)}; make room, or set HF_DATASETS_CACHE."
        )
    return ResiDualError(
        f"{quoted(path)} unpacks to more than {allowed:,} bytes, {MOST_RATIO} times its size: that "
        "is no archive of images. Unpack it yourself if you trust it, and name the folder."
    )


def _members(path: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """The regular files of an archive, each opened before the next is asked for.

    Name, bytes as it says, and what opens a stream of them.
    """
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise _no_links(info.filename, path)
                if not info.is_dir():
                    yield _name_in_zip(info), info.file_size, partial(archive.open, info)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.issym() or member.islnk():
                raise _no_links(member.name, path)
            if member.isreg():
                yield member.name, member.size, partial(archive.extractfile, member)
        # at its end a block of zeros was read, which tarfile itself does not miss
        if archive.fileobj is None or archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end of the archive")


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """UTF-8 is what Linux and macOS write; some of their programs do not set the flag for it.

    Python then reads code page 437, in which hardly a name is UTF-8 by chance.
    """
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _no_links(name: str, path: Path) -> ResiDualError:
    return ResiDualError(
        f"the archive {quoted(path)} holds the link '{name}', which may lead anywhere: pack the "
        "files themselves."
    )


def _checked(name: str, path: Path) -> tuple[str, ...]:
    """The parts of a member's path.

    Raises:
        ResiDualError: it leads out of the folder, or is no path.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = bool(parts) and parts[0].endswith(":")
    if not parts or parts[0] == "/" or drive or ".." in parts or "\0" in name:
        raise ResiDualError(
            f"the archive {quoted(path)} holds the path '{name}', which leads out of its folder; "
            "nothing was kept of it."
        )
    return parts
