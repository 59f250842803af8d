"""Several adapters at once: one per sample of a batch, or a weighted sum of some as a new one."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..errors import ResiDualError
from ..towers.captures import Capture
from .layer import AdapterLayer
from .readout.state import ReadoutState, base_of, compose, coordinates_of
from .state import Placement

BASE = "__base__"  # PEFT's name for no adapter at all, in `adapter_names`


def takes_name(adapter_name: str) -> bool:
    """Whether torch takes an adapter's name for that of a tensor."""
    own = nn.ParameterDict(), BufferDict(persistent=True)  # whose methods, "copy", are no names
    plain = bool(adapter_name) and "." not in adapter_name
    return plain and not any(hasattr(held, adapter_name) for held in own)


def check_name(adapter_name: str) -> None:
    """Refuse an adapter's name that torch would refuse once half of the adapter is there."""
    if not takes_name(adapter_name):
        mended = adapter_name.replace(".", "_")
        raise ResiDualError(
            "wanted an adapter's name without a dot, and none that torch's modules have for "
            f"something else, got {adapter_name!r}: call it "
            f"{mended if takes_name(mended) else f'{mended}_1'!r}."
        )


def check_names(model: nn.Module, names: Any, known: Mapping[str, Any]) -> None:
    """Refuse `adapter_names` that PEFT's tuners would, in words that begin as theirs do."""
    if model.training:
        raise ResiDualError(
            "Cannot pass `adapter_names` when the model is in training mode: call model.eval(), or "
            "train one adapter at a time, after set_adapter(name)."
        )
    wrong = isinstance(names, str) or not isinstance(names, Sequence)
    if wrong or not all(isinstance(name, str) for name in names):
        raise ResiDualError(
            f"adapter_names: wanted a list of names, one per sample ({BASE!r} for no adapter), got "
            f"{names!r}."
        )
    unknown = sorted({name for name in names if name != BASE and name not in known})
    if unknown:
        raise ResiDualError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; the model has "
            f"{', '.join(known)}."
        )


@contextmanager
def giving_names(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Give every tuner layer the keyword `adapter_names` while the block runs in this thread."""
    thread = threading.get_ident()

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != thread:  # another one that runs the same model
            return None
        return args, {**kwargs, "adapter_names": list(names)}

    handles = [
        module.register_forward_pre_hook(give, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def each_its_own(
    states: Mapping[str, ReadoutState],
    gains: Mapping[str, Tensor],
    names: Sequence[str],
    readout: Tensor,
    capture: Capture,
) -> Tensor:
    """y' (B, d) where every sample has its own adapter, or none.

    Samples whose adapters have one basis and equal settings share one pass: their coordinates are
    taken together and scaled by a (b, K) matrix of gains.

    Args:
        states: of each named adapter; those of adapters that share a basis are one object.
        gains: of each named adapter, (K,) or (U,).
        names: an adapter per sample; those without a state get the readout as it is.
        readout: y (B, d).
        capture: of the same forward pass.
    """
    groups: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        if name in states:
            groups.setdefault(id(states[name]), []).append(row)
    result = readout.to(next(iter(states.values())).directions.dtype)
    for rows in groups.values():
        state = states[names[rows[0]]]
        own = list(dict.fromkeys(names[row] for row in rows))
        index = torch.tensor(rows, device=readout.device)
        which = torch.tensor([own.index(names[row]) for row in rows], device=readout.device)
        matrix = torch.stack([gains[name] for name in own]).index_select(0, which)
        coordinates = coordinates_of(state, capture.rows(index))
        base = base_of(state, readout.index_select(0, index))
        result = result.index_copy(0, index, compose(state, base, coordinates, matrix))
    return result


def check_one_each(names: Sequence[str], samples: int) -> None:
    """Refuse `adapter_names` that are more or fewer than the samples, in PEFT's words."""
    if len(names) != samples:
        raise ResiDualError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(names)} and {samples} respectively."
        )


def check_weighted(
    known: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Refuse a weighted sum of adapters that cannot be taken, before anything is changed."""
    if isinstance(adapters, str) or not len(adapters) or len(adapters) != len(weights):
        raise ResiDualError(
            f"wanted a list of adapters and a weight for each, got adapters={adapters!r} and "
            f"weights={weights!r}."
        )
    if unknown := [name for name in adapters if name not in known]:
        raise ResiDualError(
            f"there are no adapters {', '.join(map(repr, unknown))} to combine; the model has "
            f"{', '.join(known)}."
        )
    if adapter_name in known:
        raise ResiDualError(
            f"the model has an adapter {adapter_name!r} already: give the sum another name, or "
            "delete_adapter() that one first."
        )
    check_name(adapter_name)
    if bad := [weight for weight in weights if not _is_number(weight)]:
        raise ResiDualError(f"weights: wanted finite numbers, got {bad}.")
    if extra := [name for name in adapters if getattr(known[name], "modules_to_save", None)]:
        raise ResiDualError(
            f"the adapters {', '.join(map(repr, extra))} have modules_to_save, whole modules of "
            "their own, which no sum of gains stands for; combine adapters without."
        )


def add_weighted(
    layers: Sequence[AdapterLayer],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
) -> None:
    """Put in the weighted sum of adapters over one basis; refused where bases differ."""
    for layer in layers:
        _check_one_basis(layer, adapters)
    first = adapters[0]
    for layer in layers:
        if not layer.has(first):
            continue
        settings = layer.adapter_settings[first]
        gains = settings.gains.combined(
            [layer.residual_peft_gains[name] for name in adapters], weights
        )
        saved = layer.saves_basis(first)
        layer.put(adapter_name, Placement(settings, layer.tensors(first), gains, saved))
        layer.residual_peft_gains[adapter_name].requires_grad_(False)


def _check_one_basis(layer: AdapterLayer, adapters: Sequence[str]) -> None:
    """Refuse adapters whose gains do not mean the same: another basis, or other settings."""
    first = adapters[0]
    for name in adapters:
        there = layer.has(first), layer.has(name)
        if all(there):
            layer.state(name)  # refuses one whose weights were never loaded
        if any(there) and not (all(there) and layer.shares_basis(first, name)):
            raise ResiDualError(
                f"the adapters {first!r} and {name!r} do not share one basis with the same "
                "modules, units, remainder, restore_mean and granularity, so that their gains "
                "mean different things; fit both from the same basis (basis=), or activate both "
                "with set_adapter([...])."
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    # numpy's scalars are Real as well
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
