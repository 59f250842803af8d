"""Image processors: loaded, asked what they use of an image, and RGB images -> model inputs."""

import os
from collections.abc import Iterable
from typing import Any

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
