"""A name or a path -> a CLIP with its tokenizer and image processor, in float32 and frozen."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from .errors import ResiDualError
from .files import read_json
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
    model = _load(CLIPModel, directory, str(name_or_path))
    tokenizer = _load_tokenizer(directory, str(name_or_path))
    _rename(model, str(name_or_path))
    model.eval().requires_grad_(False)
    return Backbone(model, tokenizer, load_image_processor(directory), str(name_or_path))


def backbone_of(model: CLIPModel, *, token: str | None = None) -> Backbone:
    """A loaded CLIP with what feeds it, from where it was loaded.

    Raises:
        ResiDualError: its tokenizer or image processor is not there any more.
    """
    name = str(model.config._name_or_path)
    directory = model_directory(name, token=token)
    tokenizer = _load_tokenizer(directory, name)
    return Backbone(model, tokenizer, load_image_processor(directory), name)


def load_image_tower(
    name_or_path: str | os.PathLike[str] = DEMO_MODEL,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> CLIPVisionModelWithProjection:
    """Load the image tower alone, in float32 and eval mode, for methods that need no text.

    Raises:
        ResiDualError: nothing there or nothing reachable, or it is no CLIP that loads.
    """
    directory = model_directory(name_or_path, revision=revision, token=token)
    model = _load(CLIPVisionModelWithProjection, directory, str(name_or_path))
    _rename(model, str(name_or_path))
    return model.eval()


def _load_tokenizer(directory: Path, name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise _no_clip(name, error) from error


def _load(kind: Any, directory: Path, name: str) -> Any:
    """Load a model of a CLIP class in float32, whole.

    Raises:
        ResiDualError: another architecture, a file cut short, or weights missing: transformers
            would draw those at random.
    """
    try:
        model, loaded = kind.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _no_clip(name, error) from error
    if missing := sorted(loaded["missing_keys"]):
        architecture = read_json(directory / "config.json").get("model_type")
        raise _no_clip(
            name,
            f"its model_type is '{architecture}', and {len(missing)} weights are missing, such as "
            f"{missing[0]}",
        )
    return model


def _no_clip(name: str, reason: Exception | str) -> ResiDualError:
    first = (str(reason).splitlines() or [repr(reason)])[0]
    return ResiDualError(
        f"wanted a CLIP in transformers format in '{name}', got none that loads ({first})."
    )


def _rename(model: nn.Module, name: str) -> None:
    # not the cache's path: what is saved next must name the model as other machines know it. The
    # bundled one keeps its path, by which PEFT and transformers find it again.
    if name != DEMO_MODEL:
        model.name_or_path = model.config._name_or_path = name  # type: ignore[union-attr, assignment]
