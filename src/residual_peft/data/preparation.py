"""How an image processor turns an image into pixel values, as a recipe that needs neither of both.

A model that leaves torch and transformers behind still wants its pixels made in the same way. The
recipe is four steps of PIL and numpy (resize, crop the middle, rescale, normalise), and is only
believed where it gives what the processor gives.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ResiDualError
from .processors import pixel_values

CLOSE = 1e-4
"""What a pixel value of the recipe may differ by; a grey level is 1/255 of a standard deviation of
0.2 or so, 200 times as much."""
TRIED = ((97, 61), (61, 97), (33, 33), (7, 500), (640, 480))
"""Widths and heights of the images that the two are compared on: tall, wide, small, a strip."""
STEPS = "resizes, crops the middle, rescales and normalises, and nothing else"
ADVICE = (
    "set one that does, such as transformers' CLIPImageProcessor, as the classifier's "
    "image_processor."
)


@dataclass(frozen=True)
class Preparation:
    """The recipe, in its order."""

    # {"height": h, "width": w}, or {"shortest_edge": n} with the other side n times the ratio of
    # the sides, rounded down; None for none
    resize: Mapping[str, int] | None
    resample: int  # PIL's number of the filter
    # height and width of the middle, black where the image is smaller: the top left corner is (size
    # − crop) // 2, negative or not. None for none
    crop: tuple[int, int] | None
    scale: float  # what bytes are multiplied with
    mean: tuple[float, ...]  # then taken away, per channel of RGB
    std: tuple[float, ...]  # then divided by

    @classmethod
    def of(cls, processor: Any) -> "Preparation":
        """The recipe of an image processor, tried on images of several shapes.

        Raises:
            ResiDualError: none of four such steps gives what it gives, or it says of itself what
                no such steps have, or nothing.
        """
        try:
            found = cls._read(processor)
            found._check(processor)
        except ResiDualError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResiDualError(
                f"wanted an image processor that {STEPS}, got a {type(processor).__name__} that "
                f"cannot be read as one ({type(error).__name__}: {error}): {ADVICE}"
            ) from error
        return found

    @classmethod
    def _read(cls, processor: Any) -> "Preparation":
        """What it says of itself."""
        said: dict[str, Any] = processor.to_dict()
        size, crop = said.get("size") or {}, said.get("crop_size") or {}
        normal, resample = said.get("do_normalize"), said.get("resample")
        return cls(
            resize={name: int(side) for name, side in size.items() if side}
            if said.get("do_resize")
            else None,
            resample=int(Image.Resampling.BILINEAR if resample is None else resample),
            crop=(int(crop["height"]), int(crop["width"])) if said.get("do_center_crop") else None,
            scale=float(said.get("rescale_factor") or 1) if said.get("do_rescale") else 1.0,
            mean=_channels(said.get("image_mean") if normal else 0.0),
            std=_channels(said.get("image_std") if normal else 1.0),
        )

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """An image in RGB -> pixel values (3, H, W)."""
        if self.resize is not None:
            image = image.resize(self._resized(image.size), Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.float32) * np.float32(self.scale)
        normal = (pixels - np.array(self.mean)) / np.array(self.std)
        return normal.astype(np.float32).transpose(2, 0, 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        assert self.resize is not None
        edge = self.resize.get("shortest_edge")
        if edge is None:
            return self.resize["width"], self.resize["height"]
        short = min(size)
        width, height = (edge * side // short for side in size)
        return width, height

    def _check(self, processor: Any) -> None:
        """Compare the recipe with what it was read from."""
        generator = np.random.default_rng(0)
        for width, height in TRIED:
            noise = generator.integers(0, 256, (height, width, 3), np.uint8)
            image = Image.fromarray(noise)
            wanted = pixel_values(processor, [image])[0].numpy()
            try:
                got = self(image)
            except KeyError:
                got = wanted[:0]
            if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=0, atol=CLOSE):
                raise ResiDualError(
                    f"wanted an image processor that {STEPS}, got a {type(processor).__name__} "
                    f"that makes other pixels of an image of {width} x {height}: {ADVICE}"
                )


def _channels(value: Any) -> tuple[float, ...]:
    found = np.broadcast_to(np.asarray(value, float), 3)
    return tuple(found.tolist())
