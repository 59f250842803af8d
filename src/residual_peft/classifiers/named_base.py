"""The base model of a saved classifier: its name, and how it is loaded again."""

import os
import re
from typing import Any

import torch
import transformers
from torch import nn

from ..errors import ResiDualError
from ..hub.directories import DEMO_MODEL, known_name, model_directory
from ..hub.model_files import load_model
from ..towers.registry import base_model
from .files import ClassifierRecord

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def origin_of(model: nn.Module) -> tuple[str | None, str]:
    """Name and class of the base model, as other machines know them."""
    base: Any = base_model(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or None
    return name and known_name(name), type(base).__name__


def load_base(record: ClassifierRecord, token: str | None, *, is_local: bool = True) -> nn.Module:
    """Load the base model that a record, which may come from anybody, names, in its dtype.

    `is_local` is whether the record lies on this machine, where a path may mean something; one from
    the Hub can only name a model there.
    """
    name, kind = record.base_model, record.base_class
    cls = getattr(transformers, kind, None) if kind.isidentifier() else None
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not name or not known or record.dtype not in _DTYPES:
        raise ResiDualError(
            f"the adapter does not say which base model to load (name {name!r}, class {kind!r}, "
            f"dtype {record.dtype!r}); pass it: from_pretrained(directory, model=...)."
        )
    if not _is_named(name, is_local):
        raise ResiDualError(
            f"the adapter names its base model by {name!r}, a place on the machine where it was "
            "made; load the model from wherever you have it, and pass it: "
            "from_pretrained(directory, model=...)."
        )
    directory = model_directory(name, what="base model", token=token)
    try:
        model, _ = load_model(cls, directory, _DTYPES[record.dtype])
    except ResiDualError as error:
        raise ResiDualError(
            f"could not load the base model '{name}' as {kind} ({str(error).rstrip('.')})."
        ) from error
    if name != DEMO_MODEL:  # as in `load_backbone`
        model.name_or_path = model.config._name_or_path = name
    return model


def _is_named(name: str, is_local: bool) -> bool:
    """Whether a base model is named in a way that leads where its author meant it to.

    `save_pretrained` writes ids of the Hub and whole paths; "../x" means another place in every
    working directory.
    """
    if os.path.isabs(name):
        return is_local
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
