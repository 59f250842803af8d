"""What is done to an adapter in a model: fit its bases, read out what it holds."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..anatomy import Unit
from ..bases import SpectralBasis
from ..errors import ResiDualError
from ..fingerprint import Fingerprint
from .choice import fitted_to
from .config import ResiDualConfig
from .gains import ReadoutState
from .placement import initial_gains, with_basis
from .readout import ResiDualReadout, readouts


def fit_bases(
    peft_model: nn.Module,
    batches: Iterable[Any],
    adapter_name: str = "default",
    progress: bool | Callable[[int], object] = False,
    *,
    across_processes: bool = False,
) -> SpectralBasis | None:
    """Fit an adapter's bases from images: one streaming pass of the unadapted model.

    The gains restart at their initial value. An adapter that scales whole contributions needs no
    basis: its gains restart, and no image is read.

    Args:
        peft_model: a model with a ResiDual adapter.
        batches: an iterable of `pixel_values` (B, C, H, W), or of dicts that hold them.
        adapter_name: the adapter to fit.
        progress: True for a bar, or what to call after each batch with its number of images.
        across_processes: under `accelerate launch` or torchrun, each process gives its own share of
            the images, and all get the basis of all of them; otherwise give each all images.

    Returns:
        The basis, in float64 on the CPU; None where none is needed.

    Raises:
        ResiDualError: no such adapter, no images, too few for the components, pixels that are not
            finite, or units that do not add up to the model's own output.
    """
    layer, config = _adapter(peft_model, adapter_name)
    if not config.needs_basis:
        restart_gains(peft_model, adapter_name=adapter_name)
        return None
    settings = layer.adapter_settings[adapter_name]
    components = None if config.component_pattern else config.components
    basis = SpectralBasis.fit(
        peft_model,
        batches,
        config.units,
        components,
        progress,
        across_processes=across_processes,
    )
    basis = fitted_to(config, basis, settings.units)
    config.basis = None  # the one it named is replaced
    with_basis(config, settings, basis, layer.anatomy).put(layer, adapter_name)
    return basis


def readout_state(peft_model: nn.Module, adapter_name: str | None = None) -> ReadoutState:
    """What leads from a capture to the adapted readout, for `coordinates_of` and `compose`.

    Args:
        peft_model: a model with a ResiDual adapter.
        adapter_name: None for the active one.

    Raises:
        ResiDualError: no such adapter, several are active, or its weights were never loaded.
    """
    name = active_adapter(peft_model) if adapter_name is None else adapter_name
    return _adapter(peft_model, name)[0].state(name)


def gains_of(peft_model: nn.Module, adapter_name: str | None = None) -> nn.Parameter:
    """The gains of an adapter, (K,) or (U,): the parameter itself.

    Raises:
        ResiDualError: no such adapter, or several are active.
    """
    name = active_adapter(peft_model) if adapter_name is None else adapter_name
    return _adapter(peft_model, name)[0].residual_peft_gains[name]


def gains_by_unit(peft_model: nn.Module, adapter_name: str | None = None) -> dict[Unit, Tensor]:
    """The gains of an adapter sorted by unit: unit -> (k_u,), or (1,) with one gain per unit.

    Raises:
        ResiDualError: no such adapter, or several are active.
    """
    name = active_adapter(peft_model) if adapter_name is None else adapter_name
    layer, _ = _adapter(peft_model, name)
    settings, counts = layer.adapter_settings[name], list(layer.adapter_counts[name])
    gains = layer.residual_peft_gains[name].detach()
    parts = gains.split([1] * len(settings.units) if settings.per_unit else counts)
    return dict(zip(settings.units, parts, strict=True))


def restart_gains(
    peft_model: nn.Module, seed: int | None = None, adapter_name: str | None = None
) -> None:
    """Set an adapter's gains to their initial value again, drawn with another seed if one is given.

    Raises:
        ResiDualError: no such adapter, or several are active.
    """
    name = active_adapter(peft_model) if adapter_name is None else adapter_name
    layer, config = _adapter(peft_model, name)
    if seed is not None:
        config.seed = seed
    settings, counts = layer.adapter_settings[name], list(layer.adapter_counts[name])
    layer.residual_peft_gains[name].data.copy_(initial_gains(config, settings, counts))


def adapter_basis(peft_model: nn.Module, adapter_name: str | None = None) -> SpectralBasis:
    """The basis that an adapter holds, to look at, save or share.

    Raises:
        ResiDualError: no such adapter, its weights were never loaded, or it has one gain per unit
            and no directions.
    """
    name = active_adapter(peft_model) if adapter_name is None else adapter_name
    layer, config = _adapter(peft_model, name)
    state, settings = layer.state(name), layer.adapter_settings[name]
    counts = list(layer.adapter_counts[name])
    if settings.per_unit:
        raise ResiDualError(f"the adapter {name!r} has granularity='unit' and keeps no directions.")
    stored = layer.stored(name)
    return SpectralBasis(
        units=settings.units,
        means=state.means.cpu(),
        components=list(state.directions.cpu().split(counts)),
        eigenvalues=list(stored.eigenvalues.cpu().split(counts)),
        total_variance=stored.total_variance.cpu(),
        num_samples=config.num_samples,
        source=config.basis_source or "weights",
        fingerprint=Fingerprint.from_dict(config.fingerprint or {}),
    )


def active_adapter(peft_model: nn.Module) -> str:
    """Name the one active adapter.

    Raises:
        ResiDualError: none or several are active.
    """
    for layer in readouts(peft_model):
        active: Any = layer.active_adapters
        if len(active) == 1:
            return str(active[0])
        raise ResiDualError(
            f"wanted one active adapter, got {active}; name one, or call set_adapter(name)."
        )
    raise _no_adapter(peft_model)


def _adapter(peft_model: nn.Module, name: str) -> tuple[ResiDualReadout, ResiDualConfig]:
    configs: Any = getattr(peft_model, "peft_config", {})  # transformers' models have one, too
    for layer in readouts(peft_model):
        if name in layer.adapter_settings:
            return layer, configs[name]
        raise ResiDualError(
            f"there is no adapter {name!r}; the model has {', '.join(layer.adapter_settings)}."
        )
    raise _no_adapter(peft_model)


def _no_adapter(model: nn.Module) -> ResiDualError:
    return ResiDualError(
        f"wanted a model with a ResiDual adapter, got a {type(model).__name__} without; make one "
        "with peft.get_peft_model(model, ResiDualConfig())."
    )
