"""An adapter's directory, checked before PEFT reads it: PEFT only warns of what is missing."""

import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import ResiDualError
from ..files import read_json
from ..hub import local_directory
from .config import ResiDualType


def load_adapter(
    model: nn.Module,
    name_or_path: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> PeftModel:
    """Load a saved adapter onto a model, or beside the adapters that it already has.

    Args:
        model: the base model, or a `PeftModel` around it.
        name_or_path: a directory that `save_pretrained` wrote, or a Hub id.
        adapter_name: its name in the model.
        is_trainable: whether its gains can be trained on.
        revision: a branch, tag or commit on the Hub.
        token: for private repositories.
        options: passed on to PEFT (`low_cpu_mem_usage`, `autocast_adapter_dtype` ...).

    Raises:
        ResiDualError: not found, of another kind, a file missing or cut short, or it belongs to
            other weights.
    """
    patterns = ["adapter_config.json", "adapter_model.*"]
    directory = local_directory(
        name_or_path,
        what="adapter",
        marker=CONFIG_NAME,
        allow_patterns=patterns,
        revision=revision,
        token=token,
    )
    check_directory(directory)
    if isinstance(model, PeftModel):
        model.load_adapter(directory, adapter_name, is_trainable=is_trainable, **options)
        return model
    return PeftModel.from_pretrained(
        model, directory, adapter_name, is_trainable=is_trainable, **options
    )


def check_directory(directory: str | os.PathLike[str]) -> None:
    """Refuse a directory that does not hold one whole ResiDual adapter.

    Raises:
        ResiDualError: names the file and what is wrong with it.
    """
    config = read_json(Path(directory) / CONFIG_NAME)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != ResiDualType.RESIDUAL_PEFT:
        raise ResiDualError(
            f"'{directory}' holds an adapter of type {kind!r}; wanted "
            f"{ResiDualType.RESIDUAL_PEFT.value!r}. Load others with PeftModel.from_pretrained."
        )
    if config.get("component_counts") is None:
        raise ResiDualError(
            f"'{Path(directory) / CONFIG_NAME}' has no component_counts: it was not written by "
            "save_pretrained of a model. Save the adapter again."
        )
    check_weights_file(directory)


def check_weights_file(directory: str | os.PathLike[str]) -> None:
    """Refuse a missing, cut short or foreign weights file; reads only its header.

    Raises:
        ResiDualError: names the file and what is wrong with it.
    """
    path = Path(directory) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file() and (Path(directory) / WEIGHTS_NAME).is_file():
        return  # save_pretrained(safe_serialization=False): PEFT unpickles tensors alone
    if not path.is_file():
        raise ResiDualError(
            f"wanted the adapter's weights in '{path}', which is missing: save or download the "
            "adapter again."
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ResiDualError(
            f"'{path}' is not a whole safetensors file ({error}); it may have been cut short or be "
            "of another kind: save or download the adapter again."
        ) from None
