"""An image file's bytes, or in a few words why they are of no use: the same at every door."""

import errno
import os
import stat
import threading
from contextlib import nullcontext

from PIL import Image

LARGEST_FILE = 2**30  # bytes
PROGRAM = "PostScript, a program that would have to be run"
_ONE_LARGE_FILE = threading.Lock()  # held by whoever reads one of more than 64 MiB
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
NO_FILE = "no such file"
_ERRORS = {
    errno.ENOENT: NO_FILE,
    errno.ENOTDIR: NO_FILE,
    errno.EACCES: "no right to read it",
    errno.EPERM: "no right to read it",
    errno.ELOOP: "a link that leads back to itself",
}


class Unusable(Exception):
    """A file or its image cannot be used; the text is the reason."""


def content_of(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file that may be an image; what may block for ever is never opened.

    Raises:
        Unusable: no file, no right, empty, or larger than `LARGEST_FILE`.
    """
    try:
        status = os.stat(path)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:  # which may block for ever, or never end
            raise Unusable(f"{kind}, not a file")
        size = status.st_size
        if size == 0:  # nor is it read: what lies in /proc says so of itself, and may block
            raise Unusable("an empty file")
        if size > LARGEST_FILE:
            raise Unusable(f"too large: a file of {size:,} bytes, more than {LARGEST_FILE:,}")
        with _ONE_LARGE_FILE if size > 2**26 else nullcontext(), open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise Unusable(_ERRORS.get(error.errno or 0) or error.strerror or repr(error)) from None
    except ValueError as error:  # a zero byte in its name
        raise Unusable(str(error)) from None


def reason_of(error: Exception) -> str:
    """What PIL's decoders, which raise many kinds, say of an image, in a line for people."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, MemoryError):
        return "too large for the memory there is"
    # PIL's own text names a BytesIO by its address
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that PIL knows"
    return next(iter(str(error).splitlines()), "") or type(error).__name__
