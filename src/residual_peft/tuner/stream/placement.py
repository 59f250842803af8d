"""From a config and a Linear to what an adapter in stream mode starts with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...bases.spectra import Components
from ...errors import ResiDualError
from ...towers.anatomy import unwrapped
from ..choice import components_of
from ..config import ResiDualConfig
from ..fitted import Fitted, Trusted
from ..gains import GAINS
from ..modes import mode_of
from ..places import shapes_of_modules, weights_to_come
from ..saved import Shape
from ..state import Placement
from .basis import weight_basis
from .layer import ResiDualStreamLinear
from .linears import check_linear, linear_weight, tower_or_none, unit_names
from .reference import saved_basis
from .tensors import STREAM_BASIS, StreamSettings, shapes_for, tensors_of


def begin(config: ResiDualConfig, model: nn.Module, trusted: Trusted) -> None:
    """Begin to write down whose basis a new adapter has; `put` adds the counts."""
    weights = None
    if trusted:  # and not the weights as they are now: adapters may be merged
        weights = trusted[0]
    elif (tower := tower_or_none(model, config.side)) is not None:
        weights = Fingerprint.of(tower).to_dict()
    found = Fitted(basis_source="weights")
    if config.basis is not None:
        config._saved_basis = saved_basis(config, model, trusted)
        found = config._saved_basis.fitted
    config.fitted = replace(found, component_counts={}, fingerprint=weights)


def check_saved(config: ResiDualConfig, model: nn.Module, trusted: Trusted) -> None:
    """Refuse a saved adapter that is of other weights or not whole, before the model is touched."""
    fitted = config.fitted
    if not isinstance(fitted.component_counts, dict):
        raise ResiDualError(
            "the adapter's config has mode='stream' and component_counts that are not sorted by "
            "module: the file was edited. Save or download the adapter again."
        )
    shapes = _saved_shapes(config, model)
    fitted.check_weights(tower_or_none(model, config.side) or model, "the adapter", trusted)
    if (weights := weights_to_come(config)) is not None:
        weights.check(shapes)
    if config.basis is not None and not config.save_basis:
        config._saved_basis = saved_basis(config, model, trusted)
    # what the patterns said is known by now, and those of a stranger are never run
    config.target_modules = sorted(fitted.component_counts)


def _saved_shapes(config: ResiDualConfig, model: nn.Module) -> dict[str, Shape]:
    """Name in the base model -> shape of all that an adapter's file holds.

    Its Linears are in the model, and as large as its counts say, or it is refused.
    """
    shapes = shapes_of_modules(model, config.modules_to_save)
    for path, counts in config.fitted.component_counts.items():
        try:
            module: Any = model.get_submodule(path)
        except AttributeError:
            raise ResiDualError(
                f"the adapter adapts {path}, which this model does not have: it belongs to another "
                "model, or the file was edited. Load it onto the model that it was made with."
            ) from None
        module = unwrapped(module)
        check_linear(module, path, model)
        out_features, in_features = linear_weight(module).shape
        if not counts or in_features % len(counts) or max(counts) > out_features:
            raise ResiDualError(
                f"the adapter has component_counts of {len(counts)} heads, at most "
                f"{max(counts, default=0)} each, for {path} of {in_features} inputs and "
                f"{out_features} outputs: the file was edited. Save or download the adapter again."
            )
        gains = StreamSettings(tuple(counts), config.granularity).gains.number
        shapes[f"{path}.{GAINS}"] = (gains,)
        if config.save_basis:
            basis = zip(STREAM_BASIS, shapes_for(counts, out_features, in_features), strict=True)
            shapes |= {f"{path}.{name}": shape for name, shape in basis}
    return shapes


def asked_components(
    config: ResiDualConfig, model: nn.Module, path: str, heads: int
) -> list[Components]:
    """The `components` that a config asks for of each head of a Linear."""
    return [components_of(config, name) for name in unit_names(model, path, heads, config.side)]


def basis_of(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    components: list[Components],
) -> tuple[StreamSettings, Sequence[Tensor]]:
    """The basis that the config names, or the one from the weights; cut to what was asked for."""
    kind = config.granularity
    if config._saved_basis is not None:
        shape = (layer.out_features, layer.in_features)
        tensors, counts = config._saved_basis.of(path, shape, components)
        return StreamSettings(counts, kind), tensors
    source = ("weights", *components)
    for name, settings in layer.adapter_settings.items():  # another adapter's may be the same
        if settings.source == source and name != adapter_name:
            return replace(settings, kind=kind), layer.tensors(name)
    weight = layer.unmerged_weight
    found = weight_basis(layer.linear, len(components), weight).truncate(components)
    settings = StreamSettings(tuple(found.component_counts), kind, source)
    return settings, tensors_of(found, weight)


def put(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    settings: StreamSettings,
    tensors: Sequence[Tensor],
) -> None:
    """Start an adapter on a basis, or make room for one that is about to be loaded."""
    gains = mode_of(config).first_gains(config, settings, path)
    waits = config._awaits_weights
    gains = torch.full_like(gains, float("nan")) if waits else gains
    placement = Placement(settings, tensors, gains, config.save_basis, ready=not waits)
    layer.put(adapter_name, placement)
    counts = {**config.fitted.component_counts, path: list(settings.counts)}
    config.fitted = replace(config.fitted, component_counts=counts)
