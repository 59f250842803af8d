"""From a config and a model to what an adapter starts with: settings, basis and gains."""

import os
from dataclasses import replace

import torch
from torch import Tensor

from ...bases.basis import SpectralBasis
from ...bases.fingerprint import Fingerprint
from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy
from ..choice import chosen_units, fitted_to
from ..config import ResiDualConfig
from ..fitted import Fitted, Trusted
from ..gains import GAINS
from ..modes import mode_of
from ..places import shapes_of_modules, weights_to_come
from ..saved import Shape
from ..state import Placement
from .head_space import HeadSpace, stored_width
from .layer import BASIS, ResiDualReadout
from .state import ReadoutSettings


def place(config: ResiDualConfig, anatomy: TowerAnatomy) -> Placement:
    """Decide what a new adapter starts with, and write into its config what belongs to it.

    A config that was read beside saved weights makes room for them; any other gets its basis from
    `config.basis` or from the model's weights alone.
    """
    settings = settings_of(config, anatomy)
    if config._awaits_weights and (config.save_basis or not config.needs_basis):
        # NaN, so that a tensor that the file leaves out is seen
        missing = torch.full((settings.gains.number,), float("nan"), device="cpu")
        room = _filled(settings, anatomy, float("nan") if config.needs_basis else 0.0)
        return Placement(settings, room, missing, config.needs_basis, ready=False)
    if not config.needs_basis:
        config.fitted = Fitted([], Fingerprint.of(anatomy).to_dict())
        empty = _filled(settings, anatomy, 0.0)  # nothing to know, nothing to save
        return Placement(settings, empty, mode_of(config).first_gains(config, settings), False)
    wanted = config.fitted
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


def _check_same_basis(expected: Fitted, config: ResiDualConfig) -> None:
    """Refuse a basis of the same weights that is not the one that the gains were trained with."""
    source, found = config.basis or "the weights", config.fitted
    one, other = expected.counts, found.counts
    if one != other:
        raise ResiDualError(
            f"the adapter's gains belong to a basis of {sum(one)} components, and the basis from "
            f"{source} has {sum(other)}: name the one that it was trained with as `basis` in "
            "adapter_config.json."
        )
    if expected.basis_digest != found.basis_digest:
        digests = [(known.basis_digest or "none")[:12] for known in (expected, found)]
        raise ResiDualError(
            f"the adapter's gains belong to another basis (digest {digests[0]}) "
            f"than the one from {source} ({digests[1]}), though both are of the "
            "same weights: name the one that it was trained with as `basis` in "
            "adapter_config.json."
        )


def settings_of(config: ResiDualConfig, anatomy: TowerAnatomy) -> ReadoutSettings:
    """Say what a config adapts in a tower, and how; only a saved one knows of directions."""
    units = chosen_units(config, anatomy)
    known = config.fitted.counts if config._awaits_weights else ()
    return ReadoutSettings(
        counts=tuple(known or (0,) * len(units)),
        kind=config.granularity,
        units=units,
        keep=config.remainder == "keep",
        restore_mean=config.restore_mean,
    )


def with_basis(
    config: ResiDualConfig, settings: ReadoutSettings, basis: SpectralBasis, anatomy: TowerAnatomy
) -> Placement:
    """Start an adapter on a basis that is `fitted_to` it, and write back whose basis it is."""
    components, eigenvalues = basis.components, torch.cat(basis.eigenvalues)
    if settings.gains.whole:  # of the basis, only the means are used
        components, eigenvalues = [], eigenvalues[:0]
    counts = [len(block) for block in components]
    settings = replace(settings, counts=tuple(counts or settings.counts))
    computed = basis.source == "weights" and config.basis is None  # rounded as each machine does
    config.fitted = Fitted(
        component_counts=counts,
        fingerprint=basis.fingerprint.to_dict(),
        basis_digest=None if computed else basis.digest,
        basis_source=basis.source,
        num_samples=basis.num_samples,
    )
    stored = HeadSpace(anatomy, settings.units).pack(
        components, basis.means, eigenvalues, basis.total_variance
    )
    return Placement(
        settings=settings,
        tensors=stored.tensors,
        gains=mode_of(config).first_gains(config, settings),
        save_basis=config.save_basis,
    )


def new_basis(
    layer: ResiDualReadout, config: ResiDualConfig, basis: SpectralBasis, adapter_name: str
) -> SpectralBasis:
    """Put another basis into an adapter, cut to what it asks for, and restart its gains."""
    settings = layer.adapter_settings[adapter_name]
    basis = fitted_to(config, basis, settings.units)
    config.basis = None  # the one it named is replaced
    layer.put(adapter_name, with_basis(config, settings, basis, layer.anatomy))
    return basis


def _filled(settings: ReadoutSettings, anatomy: TowerAnatomy, value: float) -> list[Tensor]:
    shapes = _shapes(settings, anatomy).values()
    return [torch.full(shape, value, device="cpu") for shape in shapes]


def _shapes(settings: ReadoutSettings, anatomy: TowerAnatomy) -> dict[str, Shape]:
    """Of the tensors of a basis, in the order of `StoredBasis`."""
    heads = [unit.kind == "head" for unit in settings.units]
    total = sum(settings.counts)
    inside = sum(count for count, head in zip(settings.counts, heads, strict=True) if head)
    width, stored = anatomy.readout_width, stored_width(anatomy)
    shapes = (
        (inside, stored),
        (sum(heads), stored),
        (total - inside, width),
        (len(heads) - sum(heads), width),
        (total,),
        (len(heads),),
    )
    return dict(zip(BASIS, shapes, strict=True))


def check_saved(config: ResiDualConfig, anatomy: TowerAnatomy, trusted: Trusted) -> None:
    """Refuse a saved adapter that is of other weights or not whole."""
    fitted = config.fitted
    if fitted.fingerprint is None:
        raise ResiDualError(
            "the adapter's config has component_counts but no fingerprint, so it cannot be told "
            "which weights it belongs to; save the adapter again."
        )
    fitted.check_weights(anatomy, "the adapter", trusted)
    counts, settings = fitted.counts, settings_of(config, anatomy)
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
        shapes: dict[str, Shape] = {GAINS: (settings.gains.number,)}
        if config.save_basis and config.needs_basis:
            shapes |= _shapes(settings, anatomy)
        path = anatomy.projection_path
        wanted = {f"{path}.{name}": shape for name, shape in shapes.items()}
        weights.check(wanted | shapes_of_modules(anatomy.model, config.modules_to_save), path)
