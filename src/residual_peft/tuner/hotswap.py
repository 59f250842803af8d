"""Another adapter's gains in place of one in the model, without building anything anew."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ResiDualError
from ..towers.registry import base_model
from .config import ResiDualConfig
from .gains import GAINS
from .layer import AdapterLayer
from .loading import SETTINGS, local_adapter, setting
from .places import wanted_of
from .saved import SavedWeights


def hotswap_adapter(
    model: nn.Module,
    name_or_path: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    revision: str | None = None,
    token: str | None = None,
) -> None:
    """Copy a saved adapter's gains into an adapter of the model that has the same basis.

    In place: the parameters stay the same objects at the same address, so that optimizers and
    `torch.compile` notice nothing. Only the gains of the file are used; its basis, where it holds
    one, has to be the one that is there, and is told by its digest. (PEFT's own
    `peft.utils.hotswap.hotswap_adapter` knows LoRA alone and refuses this method.)

    Args:
        model: a model with a ResiDual adapter, compiled or not.
        name_or_path: a directory that `save_pretrained` wrote, or a Hub id.
        adapter_name: the adapter whose gains are replaced.
        revision: a branch, tag or commit on the Hub.
        token: for private repositories.

    Raises:
        ResiDualError: no such adapter, a file that is not whole, or one of another basis or other
            settings; the model is then as it was.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    configs: Any = getattr(model, "peft_config", {})  # transformers' models have one, too
    mine = configs.get(adapter_name)
    if not isinstance(mine, ResiDualConfig):
        raise ResiDualError(
            f"there is no ResiDual adapter {adapter_name!r} to put other gains into; the model has "
            f"{', '.join(configs) or 'none'}. Load the first one with load_adapter."
        )
    directory = local_adapter(name_or_path, revision=revision, token=token)
    theirs = ResiDualConfig.from_pretrained(str(directory))
    _check_settings(mine, theirs, adapter_name, directory)
    base = base_model(model)
    held = theirs.save_basis and theirs.needs_basis
    wanted, path = wanted_of(base, adapter_name, basis=held)
    weights = SavedWeights.in_directory(directory)
    weights.check(wanted, path)
    tensors, pairs = weights.values(path), []
    for place, layer in base.named_modules():
        if isinstance(layer, AdapterLayer) and layer.has(adapter_name):
            own = dict(zip(layer.kinds, layer.tensors(adapter_name), strict=True))
            if held and mine.fitted.basis_digest is None and mine.fitted.from_data:
                _check_tensors(own, {kind: tensors[f"{place}.{kind}"] for kind in own}, directory)
            gains = layer.residual_peft_gains[adapter_name]
            pairs.append((gains, tensors[f"{place}.{GAINS}"]))
    for gains, new in pairs:  # nothing is changed before all have been checked
        gains.data.copy_(new)


def _check_settings(
    mine: ResiDualConfig, theirs: ResiDualConfig, adapter_name: str, directory: Path
) -> None:
    """Refuse a file whose gains mean something else."""
    what = f"the gains in '{directory}' do not fit the adapter {adapter_name!r}"
    mend = "Load it as an adapter of its own with load_adapter."
    basis = "Give both one saved basis (basis=), or load it as an adapter of its own."
    for name in SETTINGS:
        one, other = (setting(config, name) for config in (mine, theirs))
        if one != other:
            raise ResiDualError(f"{what}: {name} is {other!r} there and {one!r} here. {mend}")
    if mine.modules_to_save or theirs.modules_to_save:
        raise ResiDualError(f"{what}: modules_to_save are whole modules, and not swapped. {mend}")
    if not mine.fitted.same_weights(theirs.fitted):
        raise ResiDualError(f"{what}: they belong to other weights of the model. {mend}")
    if not mine.fitted.same_basis(theirs.fitted):
        raise ResiDualError(f"{what}: they belong to another basis. {basis}")


def _check_tensors(current: dict[str, Tensor], saved: dict[str, Tensor], directory: Path) -> None:
    """Where no digest tells the basis, compare it number by number."""
    for kind, held in current.items():
        if not torch.equal(held.to(saved[kind]), saved[kind]):
            raise ResiDualError(
                f"the gains in '{directory}' do not fit the adapter: they belong to another basis "
                f"({kind} differs). Load it with load_adapter."
            )
