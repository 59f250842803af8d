"""The mathematics of class heads, and what they are told apart by: tensors in, tensors out."""

from .head import ClassHead, Scorer
from .left_out import LeftOut
from .ridge import RidgeFit, fit_ridge

__all__ = ["ClassHead", "LeftOut", "RidgeFit", "Scorer", "fit_ridge"]
