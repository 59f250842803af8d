"""Where the weights come from of an adapter that PEFT or transformers is putting in.

Both make room for an adapter first and read its weights later, and neither tells the tuner which
file that will be. What is wrong with the file has to be known before the model is touched, so the
calls that are under way are asked. (To put the model back once the file turns out wrong would need
a call that always comes then: PEFT's comes only after it has read the file, transformers' never.)
"""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from huggingface_hub import hf_hub_download
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.integrations.peft import PeftAdapterMixin

from .config import ResiDualConfig
from .saved import SavedWeights

_HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only")


def weights_to_come(config: ResiDualConfig) -> SavedWeights | None:
    """What is about to be loaded into an adapter that waits for it, where that is known."""
    if config._directory is not None and Path(config._directory).is_dir():
        return SavedWeights.in_directory(config._directory)
    source, tensors, options = _under_way()
    if tensors is not None:
        return SavedWeights.of(tensors, "the weights for the adapter")
    if source is None:
        return None
    directory = Path(source) / (options.get("subfolder") or "")
    if directory.is_dir():
        return SavedWeights.in_directory(directory)
    return _on_hub(source, options)


def config_to_come() -> ResiDualConfig | None:
    """The config of the adapter that is being loaded, where it lies on this machine."""
    source, _, options = _under_way()
    directory = Path(source or "") / (options.get("subfolder") or "")
    if source is None or not (directory / CONFIG_NAME).is_file():
        return None
    return ResiDualConfig.from_pretrained(str(directory))


def _under_way() -> tuple[str | None, Mapping[str, Any] | None, dict[str, Any]]:
    """Name or path, state dict and options of the innermost call that loads an adapter."""
    by_peft = {_code(PeftModel.from_pretrained), _code(PeftModel.load_adapter)}
    by_transformers = _code(PeftAdapterMixin.load_adapter)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        given = frame.f_locals
        if frame.f_code in by_peft:
            return str(given["model_id"]), None, dict(given.get("kwargs") or {})
        if frame.f_code is by_transformers:
            options = {**(given.get("kwargs") or {}), **(given.get("adapter_kwargs") or {})}
            chosen = getattr(given.get("load_config"), "download_kwargs", None)
            options |= dict(chosen or {})
            source = given.get("peft_model_id")
            return None if source is None else str(source), given.get("adapter_state_dict"), options
        frame = frame.f_back
    return None, None, {}


def _code(function: Any) -> CodeType:
    inner: Any = inspect.unwrap(getattr(function, "__func__", function))
    code: CodeType = inner.__code__
    return code


def _on_hub(name: str, options: Mapping[str, Any]) -> SavedWeights | None:
    """The file that PEFT will find in the cache after this; None where the Hub does not give it."""
    chosen = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        try:
            found = hf_hub_download(name, file, **chosen)
        except (OSError, ValueError):  # PEFT asks again, and says what is wrong
            continue
        return SavedWeights.in_directory(Path(found).parent)
    return None
