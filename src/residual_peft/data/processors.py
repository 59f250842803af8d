"""Image processors: loaded, asked what they use of an image, applied, and written as a recipe.

A model that leaves torch and transformers behind still wants its pixels made in the same way. The
recipe is four steps of PIL and numpy (resize, crop the middle, rescale, normalise), and is only
believed where it gives what the processor gives.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from ..errors import ResiDualError
from ..hub.directories import local_directory


def load_image_processor(name_or_path: str | os.PathLike[str]) -> Any:
    """The image processor of a directory or Hub id, always the PIL one.

    Pixels then are the same with and without torchvision, so accuracies can be compared.
    """
    directory = local_directory(
        name_or_path, what="image processor", allow_patterns=["*processor_config.json"]
    )
    from ..hub.model_files import load_processor  # and with it models, which data do without

    try:
        return load_processor(directory)
    except ResiDualError as error:
        raise ResiDualError(
            f"wanted an image processor in '{directory}' (preprocessor_config.json), got none that "
            f"loads ({str(error).rstrip('.')}); save one there or name another directory."
        ) from error


def pixel_values(processor: Any, images: Iterable[Image.Image]) -> Tensor:
    """RGB images -> what the model takes, (B, 3, H, W)."""
    return processor(images=list(images), return_tensors="pt")["pixel_values"]


def model_inputs(processor: Any, images: Iterable[Image.Image]) -> dict[str, Tensor]:
    """RGB images -> all that a model takes of them: `pixel_values`, and what NaFlex models add.

    Those are `pixel_attention_mask` (B, N) and `spatial_shapes` (B, 2), beside patches
    (B, N, C·p·p).
    """
    found = processor(images=list(images), return_tensors="pt")
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    return {name: found[name] for name in names if name in found}


def least_side(processor: Any) -> int | None:
    """The shorter side from which on an image holds all that a processor will use of it.

    Twice what it resizes to, so that what is left of its own resampling is what counts. None where
    it does not resize, or does not say to what.
    """
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    said = getattr(size, "get", lambda name: None)
    sides = [said(name) for name in ("shortest_edge", "height", "width")]
    return max((2 * side for side in sides if isinstance(side, int)), default=None)


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
            edge = self.resize.get("shortest_edge")
            size = (
                (self.resize["width"], self.resize["height"])
                if edge is None
                else (edge * image.width // min(image.size), edge * image.height // min(image.size))
            )
            image = image.resize(size, Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, np.float32) * np.float32(self.scale)
        normal = (pixels - np.array(self.mean)) / np.array(self.std)
        return normal.astype(np.float32).transpose(2, 0, 1)

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
    return tuple(np.broadcast_to(np.asarray(value, float), 3).tolist())
