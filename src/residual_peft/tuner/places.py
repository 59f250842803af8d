"""Which tensors an adapter's file holds, of what shapes, and where they belong in a model."""

from collections.abc import Iterable
from typing import Any, cast

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .gains import GAINS, PREFIX
from .layer import AdapterLayer
from .modes import MODES
from .saved import PEFT_PREFIX, Shape

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


def at_path(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Name the tensors of a readout's layer, of which an adapter has one, after where it is."""
    marked = {key: key.rpartition(f".{PREFIX}") for key in tensors}
    return {
        f"{path}{dot}{rest}" if dot else key: tensors[key] for key, (_, dot, rest) in marked.items()
    }
