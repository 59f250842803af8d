"""ResiDual (arXiv 2411.00246) for Hugging Face: one gain per spectral component of each head.

Importing this package registers the method with PEFT, and changes nothing else. Its names are
imported when they are first used: until then neither torch nor PEFT is.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .errors import missing_extra
from .registration import register_with_peft

if TYPE_CHECKING:
    from .app.fitting import fit
    from .bases.basis import SpectralBasis
    from .bases.decomposition import Decomposition, decompose
    from .classifiers.evaluation import evaluate
    from .classifiers.exporting import export_onnx
    from .classifiers.many_tasks import TaskSet
    from .classifiers.zero_shot import ZeroShotClassifier
    from .data import load_data
    from .errors import ResiDualError
    from .hub.cards import CardFacts
    from .solvers import fit_gains, solve_gains, strength_path
    from .solvers.coordinates import Coordinates, collect_coordinates, collect_with_basis
    from .solvers.objectives import Objective
    from .solvers.store import CoordinateStore, write_coordinates
    from .solvers.training import trainer_kwargs, training_arguments
    from .towers.anatomy import LayerAnatomy, TowerAnatomy
    from .towers.registry import find_tower, register_architecture
    from .towers.units import Unit
    from .tuner import (
        ResiDualConfig,
        ResiDualModel,
        adapter_basis,
        fit_bases,
        gains_by_module,
        gains_of,
        hotswap_adapter,
    )
    from .tuner.conversion import convert_adapter, open_clip_to_transformers

__version__ = "0.1.0"

__all__ = [
    "CardFacts",
    "CoordinateStore",
    "Coordinates",
    "Decomposition",
    "LayerAnatomy",
    "Objective",
    "ResiDualConfig",
    "ResiDualError",
    "ResiDualModel",
    "SpectralBasis",
    "TaskSet",
    "TowerAnatomy",
    "Unit",
    "ZeroShotClassifier",
    "adapter_basis",
    "collect_coordinates",
    "collect_with_basis",
    "convert_adapter",
    "decompose",
    "evaluate",
    "export_onnx",
    "find_tower",
    "fit",
    "fit_bases",
    "fit_gains",
    "gains_by_module",
    "gains_of",
    "hotswap_adapter",
    "load_data",
    "open_clip_to_transformers",
    "register_architecture",
    "solve_gains",
    "strength_path",
    "trainer_kwargs",
    "training_arguments",
    "write_coordinates",
]

# a module -> what of it is public, as TYPE_CHECKING has it above: a test compares the two
_PUBLIC = {
    "app.fitting": ("fit",),
    "bases.basis": ("SpectralBasis",),
    "bases.decomposition": ("Decomposition", "decompose"),
    "classifiers.evaluation": ("evaluate",),
    "classifiers.exporting": ("export_onnx",),
    "classifiers.many_tasks": ("TaskSet",),
    "classifiers.zero_shot": ("ZeroShotClassifier",),
    "data": ("load_data",),
    "errors": ("ResiDualError",),
    "hub.cards": ("CardFacts",),
    "solvers": ("fit_gains", "solve_gains", "strength_path"),
    "solvers.coordinates": ("Coordinates", "collect_coordinates", "collect_with_basis"),
    "solvers.objectives": ("Objective",),
    "solvers.store": ("CoordinateStore", "write_coordinates"),
    "solvers.training": ("trainer_kwargs", "training_arguments"),
    "towers.anatomy": ("LayerAnatomy", "TowerAnatomy"),
    "towers.registry": ("find_tower", "register_architecture"),
    "towers.units": ("Unit",),
    "tuner": (
        "ResiDualConfig",
        "ResiDualModel",
        "adapter_basis",
        "fit_bases",
        "gains_by_module",
        "gains_of",
        "hotswap_adapter",
    ),
    "tuner.conversion": ("convert_adapter", "open_clip_to_transformers"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of this package, when it is first asked for."""
    if name in _HOME:
        try:
            found = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        except ModuleNotFoundError as error:
            raise missing_extra(error) or error from error
        globals()[name] = found
        return found
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_peft()
