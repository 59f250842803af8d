"""A name or a path -> a model with its tokenizer and image processor, in float32 and frozen.

And the base model of a saved classifier: its name, and how it is loaded again.
"""

import os
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModelWithProjection

from ..data.class_names import readable
from ..data.processors import load_image_processor
from ..errors import ResiDualError
from ..hub.directories import DEMO_MODEL, known_name, model_directory
from ..hub.files import read_object, read_record
from ..hub.model_files import load_model, load_tokenizer
from ..towers.registry import ARCHITECTURES, base_model
from .files import ClassifierRecord
from .prompts import embed_classes

DTYPES = ("float32", "bfloat16", "float16")
_SAVED_DTYPES = (*DTYPES, "float64")
TEXT_PARTS = ("get_text_features", "encode_text", "text_projection", "text_proj")


@dataclass(frozen=True)
class Backbone:
    """A dual encoder, or an image tower by itself, and what feeds it."""

    model: Any
    tokenizer: Any  # None where there is no text tower
    image_processor: Any
    name: str

    def again(self) -> "Backbone":
        """The same weights in modules of their own: what is put in place of some is not in these.

        Moved to another device or dtype, both are.
        """
        parts = list(self.model.modules())
        shared = [own for part in parts for own in (part._parameters, part._buffers)]
        model = deepcopy(self.model, {id(own): own for own in shared})
        return replace(self, model=model)


def load_backbone(
    name_or_path: str | os.PathLike[str] = DEMO_MODEL,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Backbone:
    """Load a CLIP or another model with a known image tower, in float32 and eval mode.

    The default is the bundled CLIP. A model without a text tower has no tokenizer.

    Args:
        name_or_path: a directory or Hub id.
        dtype: of its weights, by name; "float32" when None.
        revision: branch, tag or commit on the Hub.
        token: for private repositories.

    Raises:
        ResiDualError: nothing there or nothing reachable, no such model that loads, no such dtype.
    """
    kind = dtype_of(dtype)
    directory = model_directory(name_or_path, revision=revision, token=token)
    model = _load(_class_of(directory), directory, str(name_or_path))
    tokenizer = _load_tokenizer(directory, str(name_or_path)) if has_text(model) else None
    model.eval().requires_grad_(False).to(kind)
    return Backbone(model, tokenizer, load_image_processor(directory), str(name_or_path))


def device_of(name: torch.device | str | None) -> torch.device:
    """A device that is there; the CPU for None."""
    try:
        found = torch.device("cpu" if name is None else name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        first = str(error).splitlines()[0]
        why = "it is none that torch knows" if first.startswith("Expected one of") else first
        raise ResiDualError(
            f"there is no device '{name}' here ({why}); leave it out for the CPU, which always is, "
            "or name one such as cuda or mps."
        ) from None
    return found


def dtype_of(name: str | None) -> torch.dtype:
    """Floating-point numbers by name; float32 for None."""
    if name not in (None, *DTYPES):
        raise ResiDualError(f"wanted a dtype of {', '.join(DTYPES)}, got {name!r}.")
    return getattr(torch, name or "float32")


def has_text(model: nn.Module) -> bool:
    """Whether a model, or what PEFT has wrapped, embeds texts beside images, or alone."""
    model = base_model(model)
    if any(hasattr(model, name) for name in TEXT_PARTS):
        return True
    return type(model).__name__ in ARCHITECTURES["text"] and hasattr(model, "head")


def _class_of(directory: Path) -> Any:
    """The class that a directory's model was saved as, where its tower is known; else CLIP's."""
    saved = _Saved()
    if (directory / "config.json").exists():
        saved = read_record(directory / "config.json", _Saved, unknown="ignore")
    for name in saved.architectures or ():
        if name in ARCHITECTURES["image"] and not name.startswith("CLIPVision"):
            return getattr(transformers, name, CLIPModel)
    return CLIPModel


def backbone_of(model: Any) -> Backbone:
    """A loaded model with what feeds it, from where it was loaded."""
    name = str(model.config._name_or_path)
    directory = model_directory(name)
    tokenizer = _load_tokenizer(directory, name) if has_text(model) else None
    return Backbone(model, tokenizer, load_image_processor(directory), name)


def load_image_tower(
    name_or_path: str | os.PathLike[str] = DEMO_MODEL,
) -> CLIPVisionModelWithProjection:
    """Load the image tower alone, in float32 and eval mode, for methods that need no text."""
    directory = model_directory(name_or_path)
    return _load(CLIPVisionModelWithProjection, directory, str(name_or_path)).eval()


def origin_of(model: nn.Module) -> tuple[str | None, str]:
    """Name and class of the base model, as other machines know them."""
    base: Any = base_model(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or None
    return name and known_name(name), type(base).__name__


def load_base(
    record: ClassifierRecord, source: str | os.PathLike[str], token: str | None
) -> nn.Module:
    """Load the base model that a record, which may come from anybody, names, in its dtype.

    A record that its user calls `source` may name a path where that is a directory of this machine;
    one from the Hub can only name a model there.
    """
    name, kind = record.base_model, record.base_class
    cls = getattr(transformers, kind, None) if kind.isidentifier() else None
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not name or not known or record.dtype not in _SAVED_DTYPES:
        raise ResiDualError(
            f"the adapter does not say which base model to load (name {name!r}, class {kind!r}, "
            f"dtype {record.dtype!r}); pass it: from_pretrained(directory, model=...)."
        )
    # `save_pretrained` writes ids of the Hub and whole paths; "../x" means another place in every
    # working directory
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
    if not (Path(source).expanduser().is_dir() if os.path.isabs(name) else named):
        raise ResiDualError(
            f"the adapter names its base model by {name!r}, a place on the machine where it was "
            "made; load the model from wherever you have it, and pass it: "
            "from_pretrained(directory, model=...)."
        )
    directory = model_directory(name, what="base model", token=token)
    try:
        model, _ = load_model(cls, directory, getattr(torch, record.dtype))
    except ResiDualError as error:
        raise ResiDualError(
            f"could not load the base model '{name}' as {kind} ({str(error).rstrip('.')})."
        ) from error
    _rename(model, name)
    return model


def _load_tokenizer(directory: Path, name: str) -> Any:
    try:
        return load_tokenizer(directory)
    except ResiDualError as error:
        raise _no_clip(name, error) from error


def _load(kind: Any, directory: Path, name: str) -> Any:
    """Load a model of a CLIP class in float32, whole: transformers would draw what is missing."""
    try:
        model, missing = load_model(kind, directory, torch.float32)
    except ResiDualError as error:
        raise _no_clip(name, error) from error
    if missing:
        architecture = read_object(directory / "config.json").get("model_type")
        raise _no_clip(
            name,
            f"its model_type is '{architecture}', and {len(missing)} weights are missing, such as "
            f"{missing[0]}",
        )
    _rename(model, name)
    return model


def _no_clip(name: str, reason: Exception | str) -> ResiDualError:
    return ResiDualError(
        f"wanted a CLIP, or another model with a known image tower, in transformers format in "
        f"'{name}', got none that loads ({str(reason).rstrip('.')})."
    )


@dataclass(frozen=True)
class _Saved:
    """What of a config.json says which class a model was saved as."""

    architectures: tuple[str, ...] | None = None


def _rename(model: nn.Module, name: str) -> None:
    # not the cache's path: what is saved next must name the model as other machines know it. The
    # bundled one keeps its path, by which PEFT and transformers find it again.
    if name != DEMO_MODEL:
        model.name_or_path = model.config._name_or_path = name  # type: ignore[union-attr, assignment]


def embeddings_of_new(classifier: Any, new: Sequence[str]) -> list[Tensor | None]:
    """Of new classes: by the texts that the others were made of; None for means of images.

    Raises:
        ResiDualError: the model with its texts is not to be had by name.
    """
    unknown = [name for name in new if name not in classifier.class_names]
    if not unknown or not classifier.templates:
        return [None] * len(new)
    name, _ = origin_of(classifier.model)
    backbone = load_backbone(name) if name else None
    if backbone is None or backbone.tokenizer is None:
        raise ResiDualError(
            f"wanted the texts of {unknown[0]} embedded like the other classes', but the base "
            "model is not to be had by name: ZeroShotClassifier.add_class takes an embedding."
        )
    # all of them, since what a name is in a prompt hangs on the others
    names = [*unknown, *(n for n in classifier.class_names if n not in unknown)]
    said = readable(names)[: len(unknown) + 1]  # one would be no list of classes
    rows = embed_classes(backbone.model, backbone.tokenizer, said, classifier.templates)
    found = dict(zip(names, rows, strict=False))
    return [found[name] if name in unknown else None for name in new]
