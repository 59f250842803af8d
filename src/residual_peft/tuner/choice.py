"""Which units an adapter adapts, and how many directions of each: a config's patterns, resolved."""

from collections.abc import Iterable, Mapping

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..bases.basis import SpectralBasis
from ..bases.spectra import Components
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.units import Unit
from .config import ResiDualConfig
from .patterns import fullmatch, pattern_key
from .values import check_directions, check_parts

Pattern = str | list[str]


def chosen_units(config: ResiDualConfig, anatomy: TowerAnatomy) -> tuple[Unit, ...]:
    """The units that a config adapts in a tower, in the tower's order.

    Of the kinds in `units`, those in `layers_to_transform` that `unit_pattern` names and whose
    modules `exclude_modules` does not; a pattern that names none is refused.
    """
    layers, depth = config.layers, len(anatomy.layers)
    if layers is not None and layers[-1] >= depth:
        raise ResiDualError(
            f"layers_to_transform={layers}, but the {anatomy.side} tower of "
            f"{anatomy.architecture} has {depth} layers, 0 to {depth - 1}."
        )
    units = [
        unit
        for unit in anatomy.units(config.units)
        if layers is None or unit.layer is None or unit.layer in layers
    ]
    _check_patterns(config, units)
    if config.unit_pattern is not None:
        units = [unit for unit in units if _named(str(unit), config.unit_pattern)]
    if config.exclude_modules:
        named = anatomy.model.named_modules()
        paths = {id(module): path.replace(".base_layer", "") for path, module in named}
        written = {unit: {paths.get(id(m), "") for m in anatomy.writers(unit)} for unit in units}
        pattern = config.exclude_modules
        units = [u for u in units if not any(_named(path, pattern) for path in written[u])]
    if not units:
        raise ResiDualError(
            f"exclude_modules={config.exclude_modules} leaves no unit to adapt; leave out fewer."
        )
    return tuple(units)


def fitted_to(config: ResiDualConfig, basis: SpectralBasis, units: Iterable[Unit]) -> SpectralBasis:
    """Cut a basis to the units and the directions of each that a config asks for, and look at it.

    `component_pattern` comes before `components`, its first match as in PEFT's `rank_pattern`.
    """
    chosen = {unit: _requested_components(config, str(unit)) for unit in units}
    own, what = basis.select(list(chosen)), "the tensors of the basis"
    check_parts(own.means, torch.cat(own.eigenvalues), own.total_variance, what)
    names = map(str, own.units)
    check_directions(zip(names, own.components, own.eigenvalues, strict=True), what)
    return own.truncate(config.components, chosen)


def components_of(config: ResiDualConfig, name: str) -> Components:
    """How many directions of a unit a config asks for; 0 where `unit_pattern` leaves it out."""
    if config.unit_pattern is not None and not _named(name, config.unit_pattern):
        return 0
    return _requested_components(config, name)


def _requested_components(config: ResiDualConfig, name: str) -> Components:
    patterns: Mapping[str, Components] = config.component_pattern or {}
    return patterns.get(pattern_key(list(patterns), name), config.components)


def check_nothing_inside(config: ResiDualConfig, anatomy: TowerAnatomy, model: nn.Module) -> None:
    """Refuse `modules_to_save` in the image tower: the bases are those of its weights."""
    inside = {*anatomy.tower.modules(), anatomy.projection}
    for path, module in model.named_modules():
        named = any(path.endswith(name) for name in config.modules_to_save or ())
        if isinstance(module, ModulesToSaveWrapper) and module.original_module in inside:
            raise ResiDualError(
                f"{path!r} is part of the image tower, and an adapter that is there trains a copy "
                "of it (modules_to_save): readout mode's bases belong to the tower's weights. Take "
                "that adapter out, or use mode='stream'."
            )
        if named and module in inside:
            raise ResiDualError(
                f"modules_to_save={config.modules_to_save} would train {path!r}, which is part of "
                "the image tower: readout mode's bases belong to its weights. Leave it out, or use "
                "mode='stream'."
            )


def _named(name: str, pattern: Pattern) -> bool:
    """PEFT's way: a string is a regex for the whole name, a list holds names or their endings."""
    if isinstance(pattern, str):
        return fullmatch(pattern, name)
    return any(name == end or name.endswith(f".{end}") for end in pattern)


def _check_patterns(config: ResiDualConfig, units: list[Unit]) -> None:
    """Refuse a pattern that names no unit: it would be ignored in silence."""
    chosen = config.unit_pattern
    named: list[tuple[str, str, Pattern]] = [
        ("component_pattern", key, rf"(.*\.)?({key})") for key in config.component_pattern or ()
    ]
    if isinstance(chosen, str):
        named.append(("unit_pattern", chosen, chosen))
    else:
        named += [("unit_pattern", name, [name]) for name in chosen or ()]
    for field, said, pattern in named:
        if not any(_named(str(unit), pattern) for unit in units):
            raise ResiDualError(
                f"{field}: {said!r} names none of the {len(units)} units to choose from, "
                f"{units[0]} to {units[-1]}; mend it, or `units` and `layers_to_transform`."
            )
