"""Another adapter's gains in place of one in the model, without building anything anew."""

import os
from pathlib import Path
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from ..errors import ResiDualError, short
from ..hub.directories import local_directory
from ..hub.files import read_tensors
from ..towers.registry import base_model
from .config import ResiDualConfig
from .gains import GAINS
from .layer import AdapterLayer
from .loading import SETTINGS, check_directory, setting
from .modes import mode_of
from .saved import PEFT_PREFIX, check_values


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
    mine = _config(model, adapter_name)
    patterns = ["adapter_config.json", "adapter_model.*"]
    directory = local_directory(
        name_or_path, what="adapter", allow_patterns=patterns, revision=revision, token=token
    )
    check_directory(directory)
    theirs = ResiDualConfig.from_pretrained(str(directory))
    _check_settings(mine, theirs, adapter_name, directory)
    tensors, _ = read_tensors(directory / SAFETENSORS_WEIGHTS_NAME)
    pairs, known = [], set()
    for path, layer in base_model(model).named_modules():
        if isinstance(layer, AdapterLayer) and layer.has(adapter_name):
            # the file's own model may have the one layer elsewhere
            place = (theirs.target_modules or [path])[0] if mode_of(theirs).one_place else path
            prefix = f"{PEFT_PREFIX}{place}."
            if mine.fitted.basis_digest is None and mine.fitted.from_data:
                _check_tensors(layer, prefix, adapter_name, tensors, directory)
            gains = layer.residual_peft_gains[adapter_name]
            known |= {f"{prefix}{kind}" for kind in (GAINS, *layer.kinds)}
            pairs.append((gains, _checked(tensors.get(prefix + GAINS), gains, prefix, directory)))
    if foreign := [key for key in tensors if key not in known]:
        raise ResiDualError(
            f"'{directory}' holds {short(foreign[0])}, which is no part of the adapter "
            f"{adapter_name!r}: the file was changed. Save or download the adapter again."
        )
    for gains, new in pairs:  # nothing is changed before all have been checked
        gains.data.copy_(new)


def _config(model: nn.Module, adapter_name: str) -> ResiDualConfig:
    configs: Any = getattr(model, "peft_config", {})  # transformers' models have one, too
    config = configs.get(adapter_name)
    if not isinstance(config, ResiDualConfig):
        raise ResiDualError(
            f"there is no ResiDual adapter {adapter_name!r} to put other gains into; the model has "
            f"{', '.join(configs) or 'none'}. Load the first one with load_adapter."
        )
    return config


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


def _check_tensors(
    layer: Any, prefix: str, adapter_name: str, tensors: dict[str, Tensor], directory: Path
) -> None:
    """Where no digest tells the basis, compare it number by number."""
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name == GAINS:
            continue
        held = getattr(layer, name)[adapter_name]
        if held.shape != tensor.shape or not torch.equal(held.to(tensor), tensor):
            raise ResiDualError(
                f"the gains in '{directory}' do not fit the adapter {adapter_name!r}: they belong "
                f"to another basis ({name} differs). Load it with load_adapter."
            )


def _checked(new: Tensor | None, gains: Tensor, prefix: str, directory: Path) -> Tensor:
    fits = new is not None and new.shape == gains.shape and new.is_floating_point()
    if new is None or not fits:
        found = "none" if new is None else f"{new.dtype} of shape {tuple(new.shape)}"
        raise ResiDualError(
            f"'{directory}' should hold gains of shape {tuple(gains.shape)} as {prefix}"
            f"{GAINS}; got {found}. Save or download the adapter again."
        )
    check_values(new, GAINS, f"the weights in '{directory}'")
    return new
