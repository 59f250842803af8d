"""From a config and a model to what an adapter starts with: settings, basis and gains."""

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...bases.basis import SpectralBasis
from ...bases.fingerprint import Fingerprint
from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy
from ..choice import chosen_units, fitted_to
from ..config import ResiDualConfig
from ..doors import shapes_of_modules, weights_to_come
from ..layer import GAINS
from ..saved import Shape
from .gains import Settings, StoredBasis
from .head_space import HeadSpace, stored_width
from .layer import BASIS, ResiDualReadout


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
    anatomy: TowerAnatomy,
    trusted: list[dict[str, Any]] | None = None,
) -> Placement:
    """Decide what a new adapter starts with, and write into `config` what belongs to it.

    A config that was read beside saved weights makes room for them; any other gets its basis from
    `config.basis` or from the model's weights alone.

    Args:
        config: the adapter's own copy.
        anatomy: the tower.
        trusted: fingerprints that this model was found to match before.

    Raises:
        ResiDualError: layers that the model does not have, a basis or an adapter of other weights,
            or a saved adapter that is not whole.
    """
    settings = settings_of(config, anatomy)
    if config._awaits_weights:
        check_saved(config, anatomy, settings, trusted or [])
        if config.save_basis or not config.needs_basis:
            return _room(config, settings, anatomy)
    if not config.needs_basis:
        config.component_counts, config.basis_source, config.num_samples = [], None, None
        config.fingerprint = Fingerprint.of(anatomy).to_dict()
        return without_basis(config, settings, anatomy)
    wanted = copy.copy(config)
    basis = fitted_to(config, _find_basis(config, anatomy), settings.units)
    placement = with_basis(config, settings, basis, anatomy)
    if config._awaits_weights:
        _check_same_basis(wanted, config)
    return placement


def _find_basis(config: ResiDualConfig, anatomy: TowerAnatomy) -> SpectralBasis:
    """Take the basis that a config names, or one from the weights alone."""
    if config.basis is None:
        return SpectralBasis.from_weights(
            anatomy.model, config.units, side=anatomy.side, readout=anatomy.readout.name
        )
    try:
        basis = SpectralBasis.from_pretrained(config.basis)
    except ResiDualError as error:
        if not config._awaits_weights:
            raise
        raise ResiDualError(
            "the adapter's file holds its gains alone (save_basis=False), and its basis is not to "
            f"be had from {config.basis!r}, as adapter_config.json says: {error} Put the basis "
            f"there (seen from {os.getcwd()!r}), or name where it is as `basis` in "
            "adapter_config.json."
        ) from error
    basis.check_belongs_to(anatomy)
    return basis


def _check_same_basis(wanted: ResiDualConfig, found: ResiDualConfig) -> None:
    """Refuse a basis of the same weights that is not the one that the gains were trained with."""
    source = found.basis or "the weights"
    one, other = wanted.component_counts or [], found.component_counts or []
    if one != other:
        raise ResiDualError(
            f"the adapter's gains belong to a basis of {sum(one)} components, and the basis from "
            f"{source} has {sum(other)}: name the one that it was trained with as `basis` in "
            "adapter_config.json."
        )
    if wanted.basis_digest != found.basis_digest:
        raise ResiDualError(
            f"the adapter's gains belong to another basis (digest {_short(wanted.basis_digest)}) "
            f"than the one from {source} ({_short(found.basis_digest)}), though both are of the "
            "same weights: name the one that it was trained with as `basis` in "
            "adapter_config.json."
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def settings_of(config: ResiDualConfig, anatomy: TowerAnatomy) -> Settings:
    """Say what a config adapts in a tower, and how.

    Raises:
        ResiDualError: as `chosen_units`.
    """
    return Settings(
        units=chosen_units(config, anatomy),
        keep=config.remainder == "keep",
        restore_mean=config.restore_mean,
        per_unit=config.granularity == "unit",
    )


def with_basis(
    config: ResiDualConfig, settings: Settings, basis: SpectralBasis, anatomy: TowerAnatomy
) -> Placement:
    """Start an adapter on a basis of its units, and write back whose basis it is."""
    if basis.units != settings.units:
        raise ResiDualError(
            f"the basis has {len(basis.units)} units, the adapter {len(settings.units)}: fit the "
            "basis with the adapter's `units` on the whole tower."
        )
    components, eigenvalues = basis.components, torch.cat(basis.eigenvalues)
    if settings.per_unit:  # of the basis, only the means are used
        components, eigenvalues = [], eigenvalues[:0]
    counts = [len(block) for block in components]
    config.component_counts = list(counts)
    config.fingerprint = basis.fingerprint.to_dict()
    config.basis_source, config.num_samples = basis.source, basis.num_samples
    computed = basis.source == "weights" and config.basis is None  # rounded as each machine does
    config.basis_digest = None if computed else basis.digest
    return Placement(
        settings=settings,
        counts=tuple(counts),
        basis=HeadSpace(anatomy, settings.units).pack(
            components, basis.means, eigenvalues, basis.total_variance
        ),
        gains=initial_gains(config, settings, counts),
        save_basis=config.save_basis,
        ready=True,
    )


def without_basis(config: ResiDualConfig, settings: Settings, anatomy: TowerAnatomy) -> Placement:
    """Start an adapter whose gains act on whole contributions: nothing to know, nothing to save."""
    basis = _empty_basis(settings, [], anatomy, 0.0)
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
        basis=_empty_basis(settings, counts, anatomy, fill),
        gains=torch.full_like(gains, float("nan")),
        save_basis=config.needs_basis,
        ready=False,
    )


def _empty_basis(
    settings: Settings, counts: list[int], anatomy: TowerAnatomy, fill: float
) -> StoredBasis:
    shapes = _shapes(settings, counts, anatomy).values()
    return StoredBasis(*(torch.full(shape, fill, device="cpu") for shape in shapes))


def _shapes(settings: Settings, counts: list[int], anatomy: TowerAnatomy) -> dict[str, Shape]:
    """Of the tensors of a basis, in the order of `StoredBasis`."""
    heads = [unit.kind == "head" for unit in settings.units]
    inside = sum(count for count, head in zip(counts, heads, strict=False) if head)
    width, stored = anatomy.readout_width, stored_width(anatomy)
    shapes = (
        (inside, stored),
        (sum(heads), stored),
        (sum(counts) - inside, width),
        (len(heads) - sum(heads), width),
        (sum(counts),),
        (len(heads),),
    )
    return dict(zip(BASIS, shapes, strict=True))


def check_saved(
    config: ResiDualConfig,
    anatomy: TowerAnatomy,
    settings: Settings,
    trusted: list[dict[str, Any]],
) -> None:
    """Refuse a saved adapter that is of other weights or not whole, before the model is touched.

    Args:
        config: as it was read.
        anatomy: the tower.
        settings: what it adapts there.
        trusted: fingerprints that this model was found to match before.

    Raises:
        ResiDualError: as described, or its file holds something else than the adapter.
    """
    if config.fingerprint is None:
        raise ResiDualError(
            "the adapter's config has component_counts but no fingerprint, so it cannot be told "
            "which weights it belongs to; save the adapter again."
        )
    if config.fingerprint not in trusted:
        Fingerprint.from_dict(config.fingerprint).check(anatomy, "the adapter")
    counts = config.component_counts or []
    known = 0 if settings.per_unit else len(settings.units)
    if not isinstance(counts, list) or len(counts) != known:
        raise ResiDualError(
            f"the adapter's config has component_counts for {len(counts)} units, and its units are "
            f"{known} in this model: the file was edited, or belongs to another model. Save or "
            "download the adapter again."
        )
    if max(counts, default=0) > anatomy.readout_width:
        raise ResiDualError(
            f"the adapter's config has component_counts of up to {max(counts)}, and the readout "
            f"has {anatomy.readout_width} dimensions: the file was edited. Save or download the "
            "adapter again."
        )
    if (weights := weights_to_come(config)) is not None:
        weights.check(_saved_shapes(config, settings, anatomy), anatomy.projection_path)


def _saved_shapes(
    config: ResiDualConfig, settings: Settings, anatomy: TowerAnatomy
) -> dict[str, Shape]:
    """Name in the base model -> shape of all that an adapter's file holds."""
    counts, path = config.component_counts or [], anatomy.projection_path
    shapes: dict[str, Shape] = {GAINS: (len(settings.units) if settings.per_unit else sum(counts),)}
    if config.save_basis and config.needs_basis:
        shapes |= _shapes(settings, counts, anatomy)
    inside = {f"{path}.{name}": shape for name, shape in shapes.items()}
    return inside | shapes_of_modules(anatomy.model, config.modules_to_save)
