"""ResiDual as a PEFT method; importing this registers it, and changes nothing else."""

from enum import Enum
from typing import Any

from peft import mapping

from ..errors import ResiDualError
from .adapters import (
    active_adapter,
    adapted_tower,
    adapter_basis,
    basis_digest,
    fit_bases,
    gains_by_module,
    gains_by_unit,
    gains_of,
    put_basis,
    readout_config,
    readout_state,
    restart_gains,
)
from .config import PRESETS, ResiDualConfig, ResiDualType
from .gains import PREFIX, Gains
from .hotswap import hotswap_adapter
from .loading import check_directory, load_adapter
from .model import ResiDualModel
from .readout import mode as _readout  # noqa: F401  enters itself into MODES
from .readout.layer import ResiDualReadout
from .readout.state import ReadoutState, base_of, compose, coordinates_of
from .stream import mode as _stream  # noqa: F401
from .stream.basis import LinearBasis
from .stream.layer import ResiDualStreamLinear

__all__ = [
    "PREFIX",
    "PRESETS",
    "Gains",
    "LinearBasis",
    "ReadoutState",
    "ResiDualConfig",
    "ResiDualModel",
    "ResiDualReadout",
    "ResiDualStreamLinear",
    "ResiDualType",
    "active_adapter",
    "adapted_tower",
    "adapter_basis",
    "base_of",
    "basis_digest",
    "check_directory",
    "compose",
    "conversion",
    "coordinates_of",
    "fit_bases",
    "gains_by_module",
    "gains_by_unit",
    "gains_of",
    "hotswap_adapter",
    "load_adapter",
    "loading",
    "mixing",
    "put_basis",
    "readout",
    "readout_config",
    "readout_state",
    "restart_gains",
    "saved",
    "state",
]


def _register() -> None:
    """Enter the method in PEFT's three tables: the only place that touches them.

    PEFT has no way in for methods from outside: `register_peft_method` refuses types that are not
    its own. A member of an own `str` enum as key answers to its plain name as well.

    Raises:
        ResiDualError: something else goes by that name.
    """
    kind: Any = ResiDualType.RESIDUAL_PEFT
    entries: list[tuple[dict[Any, Any], Any]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, ResiDualConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, ResiDualModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for table, value in entries:
        found = table.get(kind, value)
        # a reloaded module brings its own, equal classes
        if _name(found) != _name(value):
            raise ResiDualError(
                f"PEFT already knows a method {kind.value!r}, which is {_name(found)} and not "
                f"{_name(value)}; uninstall the package that brought it."
            )
    for table, value in entries:
        table.pop(kind, None)
        table[kind] = value


def _name(value: Any) -> str:
    if isinstance(value, type) and not issubclass(value, Enum):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


_register()
