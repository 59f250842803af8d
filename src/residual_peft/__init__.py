"""ResiDual (arXiv 2411.00246) for Hugging Face: one gain per spectral component of each head.

Importing this package registers the method with PEFT, and changes nothing else.
"""

from .anatomy import TowerAnatomy, Unit, find_tower
from .bases import SpectralBasis
from .cards import CardFacts
from .coordinates import Coordinates, collect_coordinates, fit_gains
from .data import load_data
from .decomposition import Decomposition, decompose
from .errors import ResiDualError
from .evaluation import evaluate
from .many_tasks import TaskSet
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
    "Coordinates",
    "Decomposition",
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
    "decompose",
    "evaluate",
    "find_tower",
    "fit_bases",
    "fit_gains",
    "gains_by_module",
    "gains_of",
    "hotswap_adapter",
    "load_data",
    "trainer_kwargs",
    "training_arguments",
]
