"""Which tensors an adapter's file holds and where they belong in a model, and which are to come.

PEFT and transformers make room for an adapter first and read its weights later, and neither tells
the tuner which file that will be. What is wrong with the file has to be known before the model is
touched, so the calls that are under way are asked. (To put the model back once the file turns out
wrong would need a call that always comes then: PEFT's comes only after it has read the file,
transformers' never.)
"""

import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from huggingface_hub import hf_hub_download
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.integrations.peft import PeftAdapterMixin

from .config import ResiDualConfig
from .gains import GAINS
from .layer import AdapterLayer
from .modes import MODES
from .saved import PEFT_PREFIX, SavedWeights, Shape

_HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
_WRAPPERS = {"original_module", "modules_to_save"}  # what PEFT's own have inside


def wanted_of(
    model: nn.Module, adapter_name: str, *, basis: bool | None = None
) -> tuple[dict[str, Shape], str | None]:
    """What a file holds, with a basis or not (None: as the adapter), name -> shape; its path."""
    wanted: dict[str, Shape] = {}
    path = None
    for full, module in model.named_modules():
        name = full.removeprefix(PEFT_PREFIX)
        if isinstance(module, AuxiliaryTrainingWrapper):
            for key in module.adapter_state_dict_load_map(adapter_name).values():
                wanted[f"{name}.{key}"] = tuple(cast(Any, module).state_dict()[key].shape)
        if not isinstance(module, AdapterLayer) or not module.has(adapter_name):
            continue
        path = name if MODES[module.mode].one_place else path
        tensors = {GAINS: module.residual_peft_gains[adapter_name]}
        if module.saves_basis(adapter_name) if basis is None else basis:
            tensors |= zip(module.kinds, module.tensors(adapter_name), strict=True)
        wanted |= {f"{name}.{kind}": tuple(tensor.shape) for kind, tensor in tensors.items()}
    return wanted, path


def shapes_of_modules(model: nn.Module, names: Iterable[str] | None) -> dict[str, Shape]:
    """Name in the base model -> shape of all that `modules_to_save`, endings of paths, bring."""
    found: dict[str, Shape] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(part in _WRAPPERS for part in path.split("."))
        if inside or not any(path.endswith(name) for name in names or ()):
            continue
        own = getattr(module, "original_module", module)
        found |= {f"{path}.{key}": tuple(value.shape) for key, value in own.state_dict().items()}
    return found


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
    chosen = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        try:
            found = hf_hub_download(source, file, **chosen)  # PEFT will find it in the cache
        except (OSError, ValueError):  # PEFT asks again, and says what is wrong
            continue
        return SavedWeights.in_directory(Path(found).parent)
    return None


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
