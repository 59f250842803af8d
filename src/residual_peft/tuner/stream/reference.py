"""A basis in stream mode by reference: the one that another saved adapter holds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from ...bases.fingerprint import digest_of_tensors
from ...bases.spectra import Components, UnitBasis
from ...errors import ResiDualError
from ...hub.directories import local_directory
from ...hub.files import read_tensors
from ..config import ResiDualConfig
from ..fitted import Fitted, Trusted
from ..loading import check_config
from ..saved import check_values
from .basis import cut
from .linears import tower_or_none
from .tensors import STREAM_BASIS, check_tensors, shapes_for


@dataclass(frozen=True)
class SavedBasis:
    """What one saved adapter knows of each Linear."""

    name: str  # where it came from, a directory or Hub id
    tensors: dict[str, list[Tensor]]  # by the path of a Linear, those of `STREAM_BASIS`
    fitted: Fitted  # what its config says of it

    def of(
        self, path: str, linear_shape: tuple[int, int], components: Sequence[Components]
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """The tensors of one Linear and the directions of each head, cut to what was asked for."""
        if path not in self.tensors:
            raise ResiDualError(
                f"the basis of the adapter '{self.name}' knows nothing of {path}: fit an adapter "
                "to it as well, or choose what to adapt by target_modules, unit_pattern or "
                "layers_to_transform."
            )
        counts = self.fitted.component_counts[path]
        wanted = list(shapes_for(counts, *linear_shape))
        found = [tuple(tensor.shape) for tensor in self.tensors[path]]
        if len(counts) != len(components) or wanted != found:
            raise ResiDualError(
                f"the basis of the adapter '{self.name}' is of another layer than {path}: tensors "
                f"of shapes {wanted} for {len(components)} heads were wanted, got {found} for "
                f"{len(counts)}."
            )
        check_tensors(
            self.tensors[path], counts, f"the basis of the adapter '{self.name}' at {path}"
        )
        directions, input_mean, eigenvalues, total = self.tensors[path]
        rows = []
        every = torch.arange(len(directions)).split(list(counts))
        for own, variance, count in zip(every, total, components, strict=True):
            head = UnitBasis(torch.zeros(0), own.unsqueeze(1), eigenvalues[own], variance)
            rows.append(cut(head, count).components.flatten())
        chosen = torch.cat(rows)
        return (
            [directions[chosen], input_mean, eigenvalues[chosen], total],
            tuple(len(found) for found in rows),
        )


def saved_basis(config: ResiDualConfig, model: nn.Module, trusted: Trusted) -> SavedBasis:
    """Read the basis that a config names; `trusted` fingerprints the model matched before."""
    name = str(config.basis)
    try:
        directory = local_directory(
            name, what="adapter", allow_patterns=["adapter_config.json", "adapter_model.*"]
        )
        check_config(directory)
        theirs = ResiDualConfig.from_pretrained(str(directory))
    except ResiDualError as error:
        raise ResiDualError(
            "a basis in stream mode is that of a saved adapter that holds it, and there is none to "
            f"be had from {name!r} (seen from {os.getcwd()!r}): {error}"
        ) from error
    stream = isinstance(theirs.fitted.component_counts, dict)
    if not stream or not theirs.save_basis:
        kind = "holds its gains alone" if stream else "is of mode 'readout'"
        raise ResiDualError(
            f"the adapter '{name}' was named as basis and {kind}; wanted one in stream mode "
            "with save_basis=True."
        )
    tower = tower_or_none(model, config.side) or model
    theirs.fitted.check_weights(tower, f"the basis of '{name}'", trusted)
    found, _ = read_tensors(directory / SAFETENSORS_WEIGHTS_NAME)
    tensors: dict[str, list[Tensor]] = {}
    for path in theirs.fitted.component_counts:
        keys = [f"base_model.model.{path}.{kind}" for kind in STREAM_BASIS]
        missing = [key for key in keys if key not in found]
        if missing:
            raise ResiDualError(
                f"the basis of '{name}' lacks {missing[0]}: save or download the adapter again."
            )
        tensors[path] = [found[key] for key in keys]
        for kind, tensor in zip(STREAM_BASIS, tensors[path], strict=True):
            check_values(tensor, kind, f"the weights of '{name}'")
    digest = digest_of_tensors(tensors)
    if config._awaits_weights and config.fitted.basis_digest != digest:
        raise ResiDualError(
            f"the adapter's gains belong to another basis than that of '{name}', though both are "
            "of the same weights: name the one that it was trained with as `basis` in "
            "adapter_config.json."
        )
    return SavedBasis(name, tensors, replace(theirs.fitted, basis_digest=digest))
