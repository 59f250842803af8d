"""All of a fit from names, and the scores of what it left; coordinates or the Trainer in between.

A fit that is interrupted goes on where it stopped (`keeping`); which images an adapter may be
measured on is decided in one place (`measuring`).
"""

from .measuring import Chosen, choose_images, evaluate_adapter
from .reading import check_skipped, reading_options
from .report import FitReport
from .whole import check_without_texts, fit_adapter

__all__ = [
    "Chosen",
    "FitReport",
    "check_skipped",
    "check_without_texts",
    "choose_images",
    "evaluate_adapter",
    "fit_adapter",
    "reading_options",
]
