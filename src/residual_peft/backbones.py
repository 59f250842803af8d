"""A name or a path -> a CLIP with its tokenizer and image processor, in float32 and frozen."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from .errors import ResiDualError
from .hub import DEMO_MODEL, model_directory
from .images import load_image_processor


@dataclass(frozen=True)
class Backbone:
    """A dual encoder and what feeds it."""

    model: CLIPModel
    tokenizer: Any
    image_processor: Any
    name: str


def load_backbone(
    name_or_path: str | os.PathLike[str] = DEMO_MODEL,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Backbone:
    """Load a CLIP, in float32 and eval mode; the default is the bundled one.

    Raises:
        ResiDualError: nothing there or nothing reachable, or it is no CLIP that loads.
    """
    directory = model_directory(name_or_path, revision=revision, token=token)
    try:
        model = CLIPModel.from_pretrained(directory, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [repr(error)])[0]
        raise ResiDualError(
            f"wanted a CLIP in transformers format in '{name_or_path}', got none that loads "
            f"({first})."
        ) from error
    _rename(model, str(name_or_path))
    model.eval().requires_grad_(False)
    return Backbone(model, tokenizer, load_image_processor(directory), str(name_or_path))


def load_image_tower(
    name_or_path: str | os.PathLike[str] = DEMO_MODEL,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> CLIPVisionModelWithProjection:
    """Load the image tower alone, in float32 and eval mode, for methods that need no text.

    Raises:
        ResiDualError: nothing there or nothing reachable.
    """
    directory = model_directory(name_or_path, revision=revision, token=token)
    model = CLIPVisionModelWithProjection.from_pretrained(directory, dtype=torch.float32)
    _rename(model, str(name_or_path))
    return model.eval()


def _rename(model: nn.Module, name: str) -> None:
    # not the cache's path: what is saved next must name the model as other machines know it
    model.name_or_path = model.config._name_or_path = name  # type: ignore[union-attr, assignment]
