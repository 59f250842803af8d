"""All of a fit from names, and the scores of what it left; coordinates or the Trainer in between.

A fit that is interrupted goes on where it stopped (`reading`); which images an adapter may be
measured on is decided in one place (`measuring`).
"""

from .measuring import Chosen, Measuring, choose_images
from .recipe import Recipe
from .report import FitReport
from .saving import Fitted
from .scores import evaluate_adapter
from .whole import check_without_texts, compare_methods, fit, fit_adapter

__all__ = [
    "Chosen",
    "FitReport",
    "Fitted",
    "Measuring",
    "Recipe",
    "check_without_texts",
    "choose_images",
    "compare_methods",
    "evaluate_adapter",
    "fit",
    "fit_adapter",
]
