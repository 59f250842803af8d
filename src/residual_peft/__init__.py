"""ResiDual (arXiv 2411.00246) for Hugging Face: one gain per spectral component of each head.

Importing this package registers the method with PEFT, and changes nothing else.
"""

from . import architectures as architectures
from . import open_clip_towers as open_clip_towers
from .anatomy import LayerAnatomy, TowerAnatomy, Unit, find_tower, register_architecture
from .bases import SpectralBasis
from .cards import CardFacts
from .conversion import convert_adapter, open_clip_to_transformers
from .coordinates import Coordinates, collect_coordinates, collect_with_basis
from .data import load_data
from .decomposition import Decomposition, decompose
from .errors import ResiDualError
from .evaluation import evaluate
from .many_tasks import TaskSet
from .objectives import Objective
from .solvers import fit_gains, solve_gains, strength_path
from .store import CoordinateStore, write_coordinates
from .training import trainer_kwargs, training_arguments
from .tuner import (
    ResiDualConfig,
    ResiDualModel,
    adapter_basis,
    fit_bases,
    gains_by_module,
    gains_of,
    hotswap_adapter,
)
from .zero_shot import ZeroShotClassifier

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
    "find_tower",
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
