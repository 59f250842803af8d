"""The mathematics of class heads, and what they are told apart by: tensors in, tensors out."""

from .choosing import Candidate, RidgeChoice, choose_ridge, fewest_as_good
from .compress import LowRankHead, head_from_state, low_rank, within
from .head import ClassHead, Scorer
from .images import balanced_weights, duplicate_groups
from .left_out import LeftOut
from .ridge import RidgeFit, fit_ridge
from .statistics import HeadStatistics
from .streaming import StreamedFit, calibrated, fit_statistics, left_out_errors
from .updating import RidgeSettings, RidgeSums

__all__ = [
    "Candidate",
    "ClassHead",
    "HeadStatistics",
    "LeftOut",
    "LowRankHead",
    "RidgeChoice",
    "RidgeFit",
    "RidgeSettings",
    "RidgeSums",
    "Scorer",
    "StreamedFit",
    "balanced_weights",
    "calibrated",
    "choose_ridge",
    "duplicate_groups",
    "fewest_as_good",
    "fit_ridge",
    "fit_statistics",
    "head_from_state",
    "left_out_errors",
    "low_rank",
    "within",
]
