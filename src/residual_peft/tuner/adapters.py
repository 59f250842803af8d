"""What is done to an adapter in a model: fit its bases, read out what it holds.

`adapter_name` None is the one active adapter. A ResiDualError says where there is no such adapter,
several are active, or it is in the other mode.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..bases.basis import SpectralBasis
from ..bases.fingerprint import Fingerprint
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.registry import base_model
from ..towers.units import Unit
from .config import ResiDualConfig
from .layer import AdapterLayer
from .modes import Adapter, mode_of
from .readout.layer import ResiDualReadout
from .readout.placement import new_basis
from .readout.state import ReadoutState
from .state import ordinary_tensors
from .stream.basis import LinearBasis


@ordinary_tensors()
def fit_bases(
    peft_model: nn.Module,
    batches: Iterable[Any],
    adapter_name: str = "default",
    progress: bool | Callable[[int], object] = False,
    *,
    across_processes: bool = False,
) -> SpectralBasis | dict[str, LinearBasis] | None:
    """Fit an adapter's bases from images: one streaming pass of the unadapted model.

    The gains restart at their initial value. In readout mode an adapter that scales whole
    contributions needs no basis: its gains restart, and no image is read. Readout mode looks at the
    readout token, stream mode at every token of every image, since it changes them all.

    Args:
        peft_model: a model with a ResiDual adapter.
        batches: an iterable of `pixel_values` (B, C, H, W), or of dicts that hold them; in stream
            mode without an image tower, or beside `input_ids`, of whatever the model takes.
        adapter_name: the adapter to fit.
        progress: True for a bar, or what to call after each batch with its number of images.
        across_processes: under `accelerate launch` or torchrun, each process gives its own share of
            the images, or none, and all get the basis of all of them; otherwise give each all
            images.

    Returns:
        The basis, in float64 on the CPU; in stream mode one by module; None where none is needed.

    Raises:
        ResiDualError: no such adapter, no images, too few for the components, pixels that are not
            finite, or units that do not add up to the model's own output.
    """
    adapter = _layers(peft_model, adapter_name)
    found: SpectralBasis | dict[str, LinearBasis] | None = mode_of(adapter.config).fit(
        adapter, batches, progress=progress, across_processes=across_processes
    )
    if found is None:
        restart_gains(peft_model, adapter_name=adapter_name)
    return found


@ordinary_tensors()
def put_basis(
    peft_model: nn.Module, basis: SpectralBasis, adapter_name: str = "default"
) -> SpectralBasis:
    """Give an adapter in readout mode a basis, restart its gains, and return the part it uses."""
    own = _adapter(peft_model, adapter_name)
    return new_basis(own.layer, own.config, basis, adapter_name)


def readout_state(peft_model: nn.Module, adapter_name: str | None = None) -> ReadoutState:
    """What leads from a capture to the adapted readout, for `coordinates_of` and `compose`."""
    own = _adapter(peft_model, adapter_name)
    state: ReadoutState = own.layer.state(own.name)
    return state


def adapted_tower(peft_model: nn.Module, adapter_name: str | None = None) -> TowerAnatomy:
    """The tower, and its readout, that an adapter in readout mode adapts."""
    return _adapter(peft_model, adapter_name).layer.anatomy


def basis_digest(peft_model: nn.Module, adapter_name: str | None = None) -> str | None:
    """The sha256 of the basis that is saved with an adapter in readout mode; None where none is."""
    layer, config, name = _adapter(peft_model, adapter_name)
    if not config.save_basis:
        return None
    layer.state(name)  # refuses one whose weights were never loaded
    digested = layer.adapter_settings[name].digested
    digest = hashlib.sha256(f"({digested}, {tuple(config.fitted.counts)!r})".encode())
    for tensor in layer.stored(name).tensors:
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def readout_config(peft_model: nn.Module, adapter_name: str | None = None) -> ResiDualConfig:
    """The config of an adapter in readout mode."""
    return _adapter(peft_model, adapter_name).config


def gains_of(peft_model: nn.Module, adapter_name: str | None = None) -> nn.Parameter:
    """The gains of an adapter in readout mode, (K,) or (U,): the parameter itself.

    Raises:
        ResiDualError: no such adapter, several are active, or it is in stream mode and has gains in
            each layer (`gains_by_module`).
    """
    own = _adapter(peft_model, adapter_name)
    return own.layer.residual_peft_gains[own.name]


def gains_by_module(
    peft_model: nn.Module, adapter_name: str | None = None
) -> dict[str, nn.Parameter]:
    """The gains of an adapter by the path of the module they act in: the parameters themselves.

    Raises:
        ResiDualError: no such adapter, or several are active.
    """
    own = _layers(peft_model, adapter_name)
    return {path: layer.residual_peft_gains[own.name] for path, layer in own.layers.items()}


def gains_by_unit(peft_model: nn.Module, adapter_name: str | None = None) -> dict[Unit, Tensor]:
    """The gains of an adapter sorted by unit: unit -> (k_u,), or (1,) with one gain per unit."""
    layer, _, name = _adapter(peft_model, adapter_name)
    settings = layer.adapter_settings[name]
    parts = settings.gains.split(layer.residual_peft_gains[name].detach())
    return dict(zip(settings.units, parts, strict=True))


def restart_gains(
    peft_model: nn.Module, seed: int | None = None, adapter_name: str | None = None
) -> None:
    """Set an adapter's gains to their initial value again, drawn with another seed if given."""
    own = _layers(peft_model, adapter_name)
    if seed is not None:
        own.config.seed = seed
    for path, layer in own.layers.items():
        settings = layer.adapter_settings[own.name]
        gains = mode_of(own.config).first_gains(own.config, settings, path)
        layer.residual_peft_gains[own.name].data.copy_(gains)


def adapter_basis(peft_model: nn.Module, adapter_name: str | None = None) -> SpectralBasis:
    """The basis that an adapter holds, to look at, save or share.

    Raises:
        ResiDualError: no such adapter, its weights were never loaded, or it has one gain per unit
            and no directions.
    """
    layer, config, name = _adapter(peft_model, adapter_name)
    state, settings = layer.state(name), layer.adapter_settings[name]
    counts = list(settings.counts)
    if settings.per_unit:
        raise ResiDualError(f"the adapter {name!r} has granularity='unit' and keeps no directions.")
    stored = layer.stored(name)
    return SpectralBasis(
        units=settings.units,
        means=state.means.cpu(),
        components=list(state.directions.cpu().split(counts)),
        eigenvalues=list(stored.eigenvalues.cpu().split(counts)),
        total_variance=stored.total_variance.cpu(),
        num_samples=config.fitted.num_samples,
        source=config.fitted.basis_source or "weights",
        fingerprint=Fingerprint.from_dict(config.fitted.fingerprint or {}),
    )


def active_adapter(peft_model: nn.Module) -> str:
    """Name the one active adapter."""
    layers: list[Any] = list(_all_layers(peft_model).values())
    active = dict.fromkeys(name for layer in layers for name in layer.active_adapters)
    if len(active) != 1:
        raise ResiDualError(
            f"wanted one active adapter, got {list(active)}; name one, or call set_adapter(name)."
        )
    (name,) = active
    return str(name)


def _all_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The adapted layers by their path in the base model."""
    named = base_model(model).named_modules()
    layers = {path: module for path, module in named if isinstance(module, AdapterLayer)}
    if not layers:
        raise ResiDualError(
            f"wanted a model with a ResiDual adapter, got a {type(model).__name__} without; make "
            "one with peft.get_peft_model(model, ResiDualConfig())."
        )
    return layers


def _layers(model: nn.Module, name: str | None) -> Adapter:
    """An adapter by its name; None is the active one."""
    name = active_adapter(model) if name is None else name
    layers = _all_layers(model)
    found = {path: layer for path, layer in layers.items() if layer.has(name)}
    if not found:
        known = dict.fromkeys(
            other for layer in layers.values() for other in layer.adapter_settings
        )
        raise ResiDualError(f"there is no adapter {name!r}; the model has {', '.join(known)}.")
    configs: Any = cast(Any, model).peft_config  # transformers' models have one, too
    return Adapter(model, found, configs[name], name)


class _InReadout(NamedTuple):
    """An adapter in readout mode, which is one layer."""

    layer: ResiDualReadout
    config: ResiDualConfig
    name: str


def _adapter(model: nn.Module, name: str | None) -> _InReadout:
    """`_layers` of an adapter in readout mode."""
    found = _layers(model, name)
    layer = next(iter(found.layers.values()))
    if not isinstance(layer, ResiDualReadout):
        raise ResiDualError(
            f"the adapter {found.name!r} is in stream mode, which has gains in each layer and no "
            "coordinates of the readout: train it with the Trainer, and read its gains with "
            "gains_by_module."
        )
    return _InReadout(layer, found.config, found.name)
