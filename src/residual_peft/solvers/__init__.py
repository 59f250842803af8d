"""Gains fitted from coordinates, in seconds: schedule-free AdamW, or L-BFGS to a certified optimum.

Both minimize one `Objective`. The first is the paper's and the Trainer's, in random batches with
the epoch chosen on held-out images; the second takes all images at once, needs no seed, and reports
the norm of the gradient that it leaves.
"""

from .adamw import fit_gains, fit_linear, linear_readout
from .common import Fit
from .quasi_newton import solve_gains
from .strengths import STRENGTHS, StrengthPath, few_shot, strength_note, strength_path

__all__ = [
    "STRENGTHS",
    "Fit",
    "StrengthPath",
    "choice",
    "coordinates",
    "few_shot",
    "fit_gains",
    "fit_linear",
    "large",
    "linear_readout",
    "methods",
    "objectives",
    "solve_gains",
    "store",
    "strength_note",
    "strength_path",
    "training",
]
