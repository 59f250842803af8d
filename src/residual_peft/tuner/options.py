"""The options of an adapter, refused where no option knows their value or two contradict."""

from typing import TYPE_CHECKING

from ..bases.spectra import check_components
from ..errors import ResiDualError
from ..towers.readouts import READOUTS
from ..towers.registry import SIDES
from ..towers.units import UNIT_KINDS
from .gains import KINDS
from .modes import MODES
from .patterns import check_pattern

if TYPE_CHECKING:
    from .config import ResiDualConfig


def check_fields(config: "ResiDualConfig") -> None:
    """Refuse values that no option knows."""
    unknown = [kind for kind in config.units if kind not in UNIT_KINDS]
    if unknown or not config.units:
        raise ResiDualError(
            f"units: wanted a tuple of {', '.join(UNIT_KINDS)}; got {unknown or 'none'}."
        )
    config.units = tuple(kind for kind in UNIT_KINDS if kind in config.units)
    for name, choices in {
        "mode": tuple(MODES),
        "side": SIDES,
        "readout": READOUTS,
        "remainder": ("keep", "drop"),
        "granularity": tuple(KINDS),
        "gain_init": ("ones", "normal"),
    }.items():
        value = getattr(config, name)
        if value not in choices and (value is not None or name not in ("side", "readout")):
            wanted = " or ".join(map(repr, choices))
            raise ResiDualError(f"{name}: wanted {wanted}, got {value!r}.")
    config.readout = None if config.readout == "own" else config.readout
    for name in ("restore_mean", "save_basis", "init_weights"):
        if not isinstance(getattr(config, name), bool):
            raise ResiDualError(f"{name}: wanted True or False, got {getattr(config, name)!r}.")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or config.seed < 0:
        raise ResiDualError(f"seed: wanted a whole number from 0 up, got {config.seed!r}.")
    check_components(config.components)
    layers = config.layers
    named = layers if isinstance(layers, list) else ()
    if layers is not None and not (
        named and all(type(layer) is int and layer >= 0 for layer in named)
    ):
        raise ResiDualError(
            f"layers_to_transform: wanted None or layers counted from 0, got {layers!r}."
        )


def check_patterns(config: "ResiDualConfig") -> None:
    """Refuse patterns that are no regex, or that ask for what no unit has."""
    for name in ("unit_pattern", "component_pattern", "exclude_modules"):
        value = getattr(config, name)
        patterns = [value] if isinstance(value, str) else list(value or ())
        if not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise ResiDualError(f"{name}: wanted patterns that are strings, got {value!r}.")
        for pattern in patterns:
            check_pattern(pattern, name)
    if not isinstance(config.component_pattern, dict | None):
        raise ResiDualError(
            "component_pattern: wanted a dict such as {'layer3.mlp': 8}, got "
            f"{config.component_pattern!r}."
        )
    for components in (config.component_pattern or {}).values():
        check_components(components)


def check_combinations(config: "ResiDualConfig") -> None:
    """Refuse options that contradict each other."""
    if "output" in config.units and len(config.units) > 1:
        raise ResiDualError(
            f"units={config.units}: 'output' is the sum of all the others, which would be scaled "
            "twice; name 'output' alone or leave it out."
        )
    if config.layers_to_transform is not None and not {"head", "mlp"} & set(config.units):
        raise ResiDualError(
            f"layers_to_transform={config.layers_to_transform} with units={config.units}, which "
            "lie in no layer; drop it, or add 'head' or 'mlp' to the units."
        )
    if not KINDS[config.granularity].whole:
        return
    if config.components is not None or config.component_pattern:
        value = config.components or config.component_pattern
        raise ResiDualError(
            f"components={value} with granularity={config.granularity!r}, whose gains act on "
            "whole contributions; drop it, or take granularity='component'."
        )
    if config.basis is not None and not config.restore_mean:
        raise ResiDualError(
            f"basis={config.basis!r} with granularity={config.granularity!r} and "
            "restore_mean=False, which use no basis; drop it, or set restore_mean=True."
        )
