"""Small pictures that go into a report or a contact sheet."""

import io

import numpy as np
from PIL import Image

from ..errors import ResiDualError

PICTURE_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}
"""The kinds of small pictures that go into a report, and how their files' names end."""
LARGEST_PICTURE = 1024
"""Pixels that such a picture may have each way; `thumbnail` makes 160."""


def thumbnail(image: Image.Image, size: int = 160) -> bytes:
    """An RGB image at most `size` pixels wide and high, without any metadata of the original.

    JPEG, or PNG where an image is so small that its pixels are seen one by one.
    """
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    # from the bare pixels: PIL would copy comments and colour profiles into the new file
    bare, stream = Image.fromarray(np.asarray(small)), io.BytesIO()
    if max(image.size) <= 64:
        bare.save(stream, "PNG", optimize=True)
    else:
        bare.save(stream, "JPEG", quality=85, optimize=True)
    return stream.getvalue()


def picture_suffix(content: bytes, name: str) -> str:
    """How the file name of a picture with these bytes ends, one of `PICTURE_SUFFIXES`.

    Raises:
        ResiDualError: they are neither a whole JPEG nor a whole PNG.
    """
    try:
        with Image.open(io.BytesIO(content), formats=list(PICTURE_SUFFIXES)) as image:
            if max(image.size) > LARGEST_PICTURE:  # a few bytes can stand for gigabytes
                raise ValueError(f"{image.size} pixels")
            image.load()
            return PICTURE_SUFFIXES[str(image.format)]
    except Exception as error:  # as above
        raise ResiDualError(
            f"wanted {name} as a whole JPEG or PNG of at most {LARGEST_PICTURE} pixels each way, "
            "got something else or a part of one."
        ) from error
