"""From a config and a model to what an adapter starts with: settings, basis and gains."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import TowerAnatomy
from ..bases import SpectralBasis
from ..errors import ResiDualError
from ..fingerprint import Fingerprint
from .config import ResiDualConfig
from .gains import Settings, StoredBasis
from .loading import check_weights_file
from .readout import ResiDualReadout


@dataclass(frozen=True)
class Placement:
    """What `ResiDualReadout.update_layer` takes."""

    settings: Settings
    counts: tuple[int, ...]
    basis: StoredBasis
    gains: Tensor
    save_basis: bool
    ready: bool

    def put(self, layer: ResiDualReadout, adapter_name: str) -> None:
        """Put the adapter into a layer, or what it starts with in place of what it has."""
        layer.update_layer(
            adapter_name,
            self.settings,
            self.counts,
            self.basis,
            self.gains,
            save_basis=self.save_basis,
            ready=self.ready,
        )


def place(
    config: ResiDualConfig,
    model: nn.Module,
    anatomy: TowerAnatomy,
    trusted: list[dict[str, Any]] | None = None,
) -> Placement:
    """Decide what a new adapter starts with, and write into `config` what belongs to it.

    A config that was read beside saved weights makes room for them; any other gets its basis from
    `config.basis` or from the model's weights alone.

    Args:
        config: the adapter's own copy.
        model: the base model.
        anatomy: its tower.
        trusted: fingerprints that this model was found to match before.

    Raises:
        ResiDualError: layers that the model does not have, a basis or an adapter of other weights,
            or a saved adapter that is not whole.
    """
    settings = settings_of(config, anatomy)
    if config._awaits_weights:
        _check_saved(config, model, settings, trusted or [])
        if config.save_basis or not config.needs_basis:
            return _room(config, settings, anatomy)
    counts = config.component_counts if config._awaits_weights else None
    if not config.needs_basis:
        config.component_counts, config.basis_source, config.num_samples = [], None, None
        config.fingerprint = Fingerprint.of(model).to_dict()
        return without_basis(config, settings, anatomy)
    if config.basis is None:
        basis = SpectralBasis.from_weights(model, config.units)
    else:
        basis = SpectralBasis.from_pretrained(config.basis)
        basis.check_belongs_to(model)
    basis = basis.select(config.units, config.layers_to_transform).truncate(config.components)
    placement = with_basis(config, settings, basis)
    if counts is not None and counts != config.component_counts:
        raise ResiDualError(
            f"the adapter's gains belong to a basis of {sum(counts)} components, and the basis "
            f"from {config.basis or 'the weights'} has {sum(config.component_counts or [])}: name "
            "the one that it was trained with as `basis` in adapter_config.json."
        )
    return placement


def settings_of(config: ResiDualConfig, anatomy: TowerAnatomy) -> Settings:
    """Name the units that a config adapts in a tower.

    Raises:
        ResiDualError: `layers_to_transform` names a layer that the tower does not have.
    """
    layers, depth = config.layers_to_transform, len(anatomy.layers)
    if layers is not None and layers[-1] >= depth:
        raise ResiDualError(
            f"layers_to_transform={layers}, but the image tower of {anatomy.architecture} has "
            f"{depth} layers, 0 to {depth - 1}."
        )
    return Settings(
        units=tuple(
            unit
            for unit in anatomy.units(config.units)
            if layers is None or unit.layer is None or unit.layer in layers
        ),
        keep=config.remainder == "keep",
        restore_mean=config.restore_mean,
        per_unit=config.granularity == "unit",
    )


def with_basis(config: ResiDualConfig, settings: Settings, basis: SpectralBasis) -> Placement:
    """Start an adapter on a basis of its units, and write back whose basis it is."""
    if basis.units != settings.units:
        raise ResiDualError(
            f"the basis has {len(basis.units)} units, the adapter {len(settings.units)}: fit the "
            "basis with the adapter's `units` on the whole tower."
        )
    components, eigenvalues = torch.cat(basis.components), torch.cat(basis.eigenvalues)
    counts = basis.component_counts
    if settings.per_unit:  # of the basis, only the means are used
        components, eigenvalues, counts = components[:0], eigenvalues[:0], []
    config.component_counts = list(counts)
    config.fingerprint = basis.fingerprint.to_dict()
    config.basis_source, config.num_samples = basis.source, basis.num_samples
    return Placement(
        settings=settings,
        counts=tuple(counts),
        basis=StoredBasis(components, basis.means, eigenvalues, basis.total_variance),
        gains=initial_gains(config, settings, counts),
        save_basis=config.save_basis,
        ready=True,
    )


def without_basis(config: ResiDualConfig, settings: Settings, anatomy: TowerAnatomy) -> Placement:
    """Start an adapter whose gains act on whole contributions: nothing to know, nothing to save."""
    basis = _empty_basis(settings, [], anatomy.readout_width, 0.0)
    return Placement(settings, (), basis, initial_gains(config, settings, []), False, True)


def initial_gains(config: ResiDualConfig, settings: Settings, counts: list[int]) -> Tensor:
    """Ones, or seeded draws from N(1, 1): one per component or per unit, float32."""
    size = len(settings.units) if settings.per_unit else sum(counts)
    return drawn_gains(config, size, config.seed)


def drawn_gains(config: ResiDualConfig, size: int, seed: int) -> Tensor:
    """Ones, or draws from N(1, 1): seeded, or as PEFT's methods do by torch's own generator."""
    ones = torch.ones(size, dtype=torch.float32, device="cpu")
    if not config.init_weights:
        return ones + torch.randn(size, dtype=torch.float32, device="cpu")
    if config.gain_init == "ones":
        return ones
    generator = torch.Generator("cpu").manual_seed(seed)
    return ones + torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")


def _room(config: ResiDualConfig, settings: Settings, anatomy: TowerAnatomy) -> Placement:
    """Make room for weights that are about to be loaded: NaN, so that a tensor left out is seen."""
    counts = config.component_counts or []
    gains = initial_gains(config, settings, counts)
    fill = float("nan") if config.needs_basis else 0.0
    return Placement(
        settings=settings,
        counts=tuple(counts),
        basis=_empty_basis(settings, counts, anatomy.readout_width, fill),
        gains=torch.full_like(gains, float("nan")),
        save_basis=config.needs_basis,
        ready=False,
    )


def _empty_basis(settings: Settings, counts: list[int], width: int, fill: float) -> StoredBasis:
    units, total = len(settings.units), sum(counts)
    return StoredBasis(
        components=torch.full((total, width), fill, device="cpu"),
        means=torch.full((units, width), fill, device="cpu"),
        eigenvalues=torch.full((total,), fill, device="cpu"),
        total_variance=torch.full((units,), fill, device="cpu"),
    )


def _check_saved(
    config: ResiDualConfig,
    model: nn.Module,
    settings: Settings,
    trusted: list[dict[str, Any]],
) -> None:
    """Refuse a saved adapter that is of other weights or not whole, before the model is touched."""
    if config._directory is not None and os.path.isdir(config._directory):
        check_weights_file(config._directory)
    if config.fingerprint is None:
        raise ResiDualError(
            "the adapter's config has component_counts but no fingerprint, so it cannot be told "
            "which weights it belongs to; save the adapter again."
        )
    if config.fingerprint not in trusted:
        Fingerprint.from_dict(config.fingerprint).check(model, "the adapter")
    counts = config.component_counts or []
    if not settings.per_unit and len(counts) != len(settings.units):
        raise ResiDualError(
            f"the adapter's config has component_counts for {len(counts)} units, and its units are "
            f"{len(settings.units)} in this model: the file was edited, or belongs to another "
            "model. Save or download the adapter again."
        )
