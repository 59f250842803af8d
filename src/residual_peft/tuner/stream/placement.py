"""From a config and a Linear to what an adapter in stream mode starts with."""

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...bases.spectra import Components
from ...errors import ResiDualError
from ...towers.registry import unwrapped
from ..choice import components_of
from ..config import ResiDualConfig
from ..doors import shapes_of_modules, weights_to_come
from ..layer import GAINS
from ..readout.placement import drawn_gains
from ..saved import Shape
from .basis import LinearBasis, weight_basis
from .layer import ResiDualStreamLinear
from .linears import check_linear, heads_of, linear_weight, tower_or_none, unit_names
from .reference import saved_basis
from .tensors import STREAM_BASIS, StreamSettings, room_for, shapes_for, tensors_of


def prepare(config: ResiDualConfig, model: nn.Module, trusted: list[dict[str, Any]]) -> None:
    """Check a saved adapter before the model is touched, or begin to write down what is put in.

    Args:
        config: the adapter's own copy, its `target_modules` known.
        model: the base model.
        trusted: fingerprints that this model was found to match before.

    Raises:
        ResiDualError: the adapter is of other weights or not whole.
    """
    if not config._awaits_weights:
        config.component_counts, config.basis_source, config.num_samples = {}, "weights", None
        config.basis_digest = None
        config.fingerprint = None
        if trusted:  # and not the weights as they are now: adapters may be merged
            config.fingerprint = trusted[0]
        elif (tower := tower_or_none(model, config.side)) is not None:
            config.fingerprint = Fingerprint.of(tower).to_dict()
        if config.basis is not None:
            config._saved_basis = found = saved_basis(config, model, trusted)
            config.basis_source, config.num_samples = found.source, found.num_samples
            config.basis_digest = found.digest
        return
    if not isinstance(config.component_counts, dict):
        raise ResiDualError(
            "the adapter's config has mode='stream' and component_counts that are not sorted by "
            "module: the file was edited. Save or download the adapter again."
        )
    _linears(config, model)  # which are there, and as large as the counts say
    if config.fingerprint is not None and config.fingerprint not in trusted:
        Fingerprint.from_dict(config.fingerprint).check(
            tower_or_none(model, config.side) or model, "the adapter"
        )
    if (weights := weights_to_come(config)) is not None:
        weights.check(_saved_shapes(config, model))
    if config.basis is not None and not config.save_basis:
        config._saved_basis = saved_basis(config, model, trusted)
    # what the patterns said is known by now, and those of a stranger are never run
    config.target_modules = sorted(config.component_counts)


def _linears(config: ResiDualConfig, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Path -> (D, n) of the Linears that a saved adapter adapts."""
    found = {}
    for path, counts in config.component_counts.items():
        try:
            module: Any = model.get_submodule(path)
        except AttributeError:
            raise ResiDualError(
                f"the adapter adapts {path}, which this model does not have: it belongs to another "
                "model, or the file was edited. Load it onto the model that it was made with."
            ) from None
        module = unwrapped(module)
        check_linear(module, path, model)
        sizes = linear_weight(module).shape
        if not counts or sizes[1] % len(counts) or max(counts) > sizes[0]:
            raise ResiDualError(
                f"the adapter has component_counts of {len(counts)} heads, at most "
                f"{max(counts, default=0)} each, for {path} of {sizes[1]} inputs and {sizes[0]} "
                "outputs: the file was edited. Save or download the adapter again."
            )
        found[path] = int(sizes[0]), int(sizes[1])
    return found


def _saved_shapes(config: ResiDualConfig, model: nn.Module) -> dict[str, Shape]:
    """Name in the base model -> shape of all that an adapter's file holds."""
    shapes = shapes_of_modules(model, config.modules_to_save)
    per_unit = config.granularity == "unit"
    for path, (out_features, in_features) in _linears(config, model).items():
        counts = config.component_counts[path]
        gains = StreamSettings(tuple(counts), per_unit).num_gains
        shapes[f"{path}.{GAINS}"] = (gains,)
        if config.save_basis:
            basis = zip(STREAM_BASIS, shapes_for(counts, out_features, in_features), strict=True)
            shapes |= {f"{path}.{name}": shape for name, shape in basis}
    return shapes


def place_stream(
    config: ResiDualConfig,
    model: nn.Module,
    adapter_name: str,
    target: nn.Module,
    path: str,
) -> ResiDualStreamLinear:
    """Put an adapter into a layer, made around `target` where there is none, and return the layer.

    Raises:
        ResiDualError: `target` cannot be adapted, or the basis is not the saved adapter's.
    """
    if isinstance(target, ResiDualStreamLinear):
        layer = target
    else:
        check_linear(target, path, model)
        layer = ResiDualStreamLinear(target)
    per_unit = config.granularity == "unit"
    if not config._awaits_weights:
        asked = asked_components(config, model, path, heads_of(model, path))
        _begin(config, layer, adapter_name, path, asked)
        return layer
    counts = tuple(config.component_counts[path])
    if config.save_basis:
        settings = StreamSettings(counts, per_unit)
        room = room_for(counts, layer.out_features, layer.in_features)
        gains = torch.full((settings.num_gains,), float("nan"), device="cpu")
        layer.update_layer(adapter_name, settings, room, gains, save_basis=True, ready=False)
        return layer
    config.component_counts = dict(config.component_counts)  # the file's own stays as it was read
    asked = asked_components(config, model, path, len(counts))
    _begin(config, layer, adapter_name, path, asked)
    if tuple(config.component_counts[path]) != counts:
        raise ResiDualError(
            f"the adapter's gains belong to a basis of {sum(counts)} components at {path}, and the "
            f"{'weights give' if config.basis is None else f'one from {config.basis!r} has'} "
            f"{sum(config.component_counts[path])}: it is another one."
        )
    return layer


def asked_components(
    config: ResiDualConfig, model: nn.Module, path: str, heads: int
) -> list[Components]:
    """The `components` that a config asks for of each head of a Linear."""
    return [components_of(config, name) for name in unit_names(model, path, heads, config.side)]


def _begin(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    asked: list[Components],
) -> None:
    """Start on the basis that the config names, or on the one from the weights."""
    if config._saved_basis is None:
        _from_weights(config, layer, adapter_name, path, asked)
        return
    shape = (layer.out_features, layer.in_features)
    tensors, counts = config._saved_basis.of(path, shape, asked)
    _put(config, layer, adapter_name, path, tensors, counts, ())


def _from_weights(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    asked: list[Components],
) -> None:
    """Start on the basis from the weights: another adapter's, where it is the same."""
    source = ("weights", *asked)
    for name, settings in layer.adapter_settings.items():
        if settings.source == source and name != adapter_name and layer.has(name):
            tensors, counts = layer.tensors(name), settings.counts
            break
    else:
        weight = layer.unmerged_weight
        found = weight_basis(layer.linear, len(asked), weight).truncate(asked)
        tensors, counts = tensors_of(found, weight), tuple(found.component_counts)
    _put(config, layer, adapter_name, path, tensors, counts, source)


def put_basis(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    basis: LinearBasis,
) -> None:
    """Start an adapter anew on a fitted basis."""
    tensors = tensors_of(basis, layer.unmerged_weight)
    _put(config, layer, adapter_name, path, tensors, tuple(basis.component_counts), ())


def _put(
    config: ResiDualConfig,
    layer: ResiDualStreamLinear,
    adapter_name: str,
    path: str,
    tensors: list[Tensor],
    counts: tuple[int, ...],
    source: tuple[object, ...],
) -> None:
    settings = StreamSettings(counts, config.granularity == "unit", source)
    gains = stream_gains(config, settings, path)
    layer.update_layer(
        adapter_name,
        settings,
        tensors,
        torch.full_like(gains, float("nan")) if config._awaits_weights else gains,
        save_basis=config.save_basis,
        ready=not config._awaits_weights,
    )
    config.component_counts[path] = list(counts)


def stream_gains(config: ResiDualConfig, settings: StreamSettings, path: str) -> Tensor:
    """The first gains of one layer; each layer draws its own."""
    seed = config.seed + zlib.crc32(path.encode())
    return drawn_gains(config, settings.num_gains, seed)
