"""Whatever a user calls an image -> PIL in RGB.

Transparency is laid on white, 16-bit greys are scaled (PIL alone would clip them), EXIF orientation
is applied, palettes and CMYK are converted.
"""

import io
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..errors import ResiDualError
from ..hub.files import path_of
from .stored import NO_FILE, PROGRAM, Unusable, content_of, reason_of

ImageLike = Image.Image | npt.NDArray[Any] | Tensor | str | os.PathLike[str] | Mapping[str, Any]
_CHANNELS = (1, 3, 4)
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag
LARGE = 2**25
"""Pixels from which an image in a file is made smaller piece by piece, and never held as a whole
in more than its own mode."""
STRIP = 2**25
"""Pixels that an image may have when a processor has resized its shorter side."""


class UnreadableImage(ResiDualError):
    """An image that cannot be read.

    Attributes:
        file: its path, or what it is called where it has none.
        reason: what is wrong with it.
    """

    def __init__(self, message: str, file: str, reason: str) -> None:
        super().__init__(message)
        self.file, self.reason = file, reason

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.file, self.reason)


def to_rgb(image: ImageLike, name: str = "the image", *, least: int | None = None) -> Image.Image:
    """One image of any kind -> PIL in RGB, upright.

    A file of more pixels than `PIL.Image.MAX_IMAGE_PIXELS` is refused, unless it is a JPEG that
    `least` lets be decoded smaller.

    Args:
        image: PIL, a path, an array (H, W), (H, W, 1 | 3 | 4) or a tensor (1 | 3 | 4, H, W), whole
            numbers from 0 (uint8, or uint16 up to 65535) or floats from 0 to 1; or a dict with
            `bytes` or `path` as `datasets` stores undecoded images.
        name: what to call it in a message.
        least: of a file, the shorter side that is enough (`least_side`). A JPEG is decoded at 1/2,
            1/4 or 1/8 of its size where that leaves so much, in a fraction of the time; other large
            files are reduced by a whole number. None, and for an image in memory: all pixels.

    Raises:
        UnreadableImage: it cannot be read, is empty, too large, or has NaN, infinite or impossible
            values.
    """
    if isinstance(image, str | os.PathLike):
        image, name = _open(Path(image), f"'{image}'", least), f"'{image}'"
    elif isinstance(image, Mapping):
        data, path = image.get("bytes"), image.get("path")
        if data is not None:
            image = _open_stream(io.BytesIO(data), name, least)
        elif path:
            image = _open(path_of(path), f"'{path}'", least)
        else:
            raise ResiDualError(f"wanted {name} as bytes or a path, got neither.")
    elif isinstance(image, Tensor):
        array = image.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array
        first = array.ndim == 3 and array.shape[0] in _CHANNELS
        image = _from_array((array.permute(1, 2, 0) if first else array).numpy(), name)
    elif isinstance(image, np.ndarray):
        image = _from_array(image, name)
    if not isinstance(image, Image.Image):
        raise ResiDualError(
            f"wanted {name} as a PIL image, a path, an array or a tensor, got "
            f"{type(image).__name__}."
        )
    try:
        image.load()
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        _check_shape(image, name, least)
        return _pil_to_rgb(image, name)
    except ResiDualError:
        raise
    except Exception as error:  # PIL's decoders raise many kinds
        raise _unreadable(name, error) from error


def image_list(images: ImageLike | Iterable[ImageLike]) -> tuple[list[ImageLike], bool]:
    """One or many images -> a list, and whether it was one.

    An array (N, H, W, C) or a tensor (N, C, H, W) is many.
    """
    if isinstance(images, np.ndarray | Tensor):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, Image.Image | str | os.PathLike | Mapping):
        return [images], True
    if not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise ResiDualError(
            "wanted an image (PIL, a path, an array, a tensor) or several, got "
            f"{type(images).__name__}."
        )
    return list(images), False


def _open(path: Path, name: str, least: int | None) -> Image.Image:
    if path.is_dir():
        raise UnreadableImage(
            f"wanted the image {name}, but that is a folder: give the images in it one by one, or "
            "as a list.",
            str(path),
            "a folder",
        )
    try:
        content = content_of(path)
    except Unusable as bad:
        if str(bad) == NO_FILE:
            message = f"wanted the image {name}, but there is no such file."
            raise UnreadableImage(message, str(path), NO_FILE) from None
        raise _unreadable(name, bad) from None
    return _open_stream(io.BytesIO(content), name, least)


def _open_stream(stream: io.BytesIO, name: str, least: int | None) -> Image.Image:
    # PIL warns where `_check_size` refuses, and of files that come to be decoded smaller
    kind = Image.DecompressionBombWarning
    if not any(known[2] is kind for known in warnings.filters):
        warnings.simplefilter("ignore", kind, append=True)  # last: a filter of the user's counts
    try:
        if not stream.getbuffer():
            raise Unusable("an empty file")
        image: Image.Image = Image.open(stream)
        if image.format == "EPS":  # PIL would have it run
            raise UnreadableImage(f"could not read {name} ({PROGRAM}).", _bare(name), PROGRAM)
        if least is not None and isinstance(image, JpegImageFile):
            image.draft(None, (least, least))
        _check_size(image, name)
        image.load()
        return image if least is None else _reduced(image, name, least)
    except ResiDualError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def _check_size(image: Image.Image, name: str) -> None:
    limit, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    if limit is not None and width * height > limit:
        raise UnreadableImage(
            f"{name} has {width} x {height} pixels, more than the {limit:,} that are read: make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS.",
            _bare(name),
            f"{width} x {height} pixels are more than {limit:,}",
        )


def _check_shape(image: Image.Image, name: str, least: int | None) -> None:
    """Refuse a strip whose shorter side would make a processor blow it up beyond all bounds."""
    short, long = min(image.size), max(image.size)
    if least is not None and short and long / short * (least / 2) ** 2 > STRIP:
        raise UnreadableImage(
            f"{name} has {image.width} x {image.height} pixels, too long a strip to be resized: "
            "crop it, or remove it.",
            _bare(name),
            f"a strip of {image.width} x {image.height} pixels",
        )


def _reduced(image: Image.Image, name: str, least: int) -> Image.Image:
    """A large image by a whole number smaller, in RGB, from bands: its copies would be as large."""
    factor = min(image.size) // least
    if image.width * image.height < LARGE or factor < 2 or image.mode[0] in "IF":
        return image
    width, height = image.size
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    band = factor * max(1, 2**20 // (factor * width))
    for top in range(0, height, band):
        part = image.crop((0, top, width, min(top + band, height)))
        whole.paste(_pil_to_rgb(part, name).reduce(factor), (0, top // factor))
    whole.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return whole


def _bare(name: str) -> str:
    """A file's name as it is, out of the quotes that it has in a message."""
    return name[1:-1] if name[:1] == name[-1:] == "'" else name


def _unreadable(name: str, error: Exception) -> UnreadableImage:
    detail = reason_of(error)
    return UnreadableImage(
        f"could not read {name} ({detail}); repair, replace or remove it.", _bare(name), detail
    )


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)  # channels first
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise ResiDualError(
            f"wanted {name} as (height, width) or (height, width, 1, 3 or 4 channels), got an "
            f"array of shape {tuple(array.shape)}."
        )
    if array.size == 0:
        raise ResiDualError(f"wanted {name} with at least one pixel, got {tuple(array.shape)}.")
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint16 and np.issubdtype(array.dtype, np.integer) and array.max() > 255:
        raise ResiDualError(
            f"wanted {name} with whole numbers of 0 to 255, or as uint16 of 0 to 65535, got "
            f"{array.dtype} up to {array.max()}: how bright that is cannot be told of one image; "
            "give floats from 0 to 1."
        )
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array, name)))


def _to_bytes(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    """Any numbers -> 0..255: uint8 as they are, uint16 from 0..65535, floats from 0..1."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ResiDualError(f"{name} has NaN or infinite pixels; wanted finite numbers.")
    if np.issubdtype(array.dtype, np.integer):
        scale, limit = (1 / 257, 65535) if array.dtype == np.uint16 or high > 255 else (1.0, 255)
    else:
        scale, limit = 255.0, 1
    if low < 0 or high > limit:
        raise ResiDualError(
            f"wanted {name} with whole numbers (0 to 255, or 0 to 65535) or floats from 0 to 1, "
            f"got {array.dtype} from {low:g} to {high:g}; pixel values that a processor has "
            "already normalized go to the model, not here."
        )
    return np.rint(array * scale).astype(np.uint8)


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ResiDualError(f"wanted {name} with at least one pixel, got size {image.size}.")
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image)
        # a 16-bit file stays 16-bit however dark it is; mode I and F say nothing of their range
        if image.mode.startswith("I;16"):
            array = array.astype(np.uint16)
        elif image.mode == "F" and np.isfinite(array).all() and array.max() > 1:
            array = np.rint(array).astype(np.int64)
        image = Image.fromarray(_to_bytes(array, name))
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")
