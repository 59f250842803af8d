"""Bases of stream mode from data: one pass, all adapted Linears at once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ...errors import ResiDualError
from ...towers.registry import base_model
from ..config import ResiDualConfig
from ..fitted import Fitted
from .basis import LinearBasis, collect_moments, data_basis
from .layer import ResiDualStreamLinear
from .placement import asked_components, new_basis
from .reference import digest_of


def fit_stream(
    peft_model: nn.Module,
    layers: Mapping[str, ResiDualStreamLinear],
    config: ResiDualConfig,
    batches: Iterable[Any],
    adapter_name: str,
    progress: bool | Callable[[int], object] = False,
    *,
    across_processes: bool = False,
) -> dict[str, LinearBasis]:
    """Fit the basis of every adapted Linear and start the adapter anew on them.

    Args:
        peft_model: a model with an adapter in stream mode.
        layers: the adapter's, by path.
        config: the adapter's, which is written into.
        batches: as `collect_moments`.
        adapter_name: the adapter to fit.
        progress: as `collect_moments`.
        across_processes: as `collect_moments`.

    Raises:
        ResiDualError: adapters are merged, or as `collect_moments`.
    """
    _check_unmerged(layers)
    readers = {
        path: (layer.linear, len(layer.adapter_settings[adapter_name].counts))
        for path, layer in layers.items()
    }
    moments, count = collect_moments(
        peft_model,
        readers,
        batches,
        progress,
        across_processes=across_processes,
        side=config.side,
    )
    # all are read out before the first is put in: a refusal leaves the adapter as it was
    found = {
        path: data_basis(module, moments[path]).truncate(
            asked_components(config, base_model(peft_model), path, heads)
        )
        for path, (module, heads) in readers.items()
    }
    known = Fitted({}, config.fitted.fingerprint, None, "data", count)
    config.fitted, config.basis = known, None  # the one it named is replaced
    for path, basis in found.items():
        new_basis(config, layers[path], adapter_name, path, basis)
    tensors = {path: layer.tensors(adapter_name) for path, layer in layers.items()}
    config.fitted = replace(config.fitted, basis_digest=digest_of(tensors))
    return found


def _check_unmerged(layers: Mapping[str, ResiDualStreamLinear]) -> None:
    for path, layer in layers.items():
        if layer.merged:
            raise ResiDualError(
                f"the adapters {layer.merged_adapters} are merged into {path}, and bases are those "
                "of the unadapted model: call unmerge_adapter() first."
            )
