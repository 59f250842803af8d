"""The mathematics of class heads, and what they are told apart by: tensors in, tensors out.

One name means the same in all of it: `features` (N, K) of N images; `labels` (N,), class numbers,
or with several labels per image zeros and ones (N, C); `class_count` C; `zero_shot` z (N, C), the
text's logits; `class_weights` (C,), how much an image of each class counts; `groups` (N,), what
images share that are left out together; `folds` of the cross-validation; `power` p of the scales
std^p, which features are divided by: 0 leaves them, 1 standardizes. Where they do not fit together,
or are not finite, a ResiDualError says so.
"""

from .choosing import Candidate, choose_ridge, fewest_as_good
from .compress import LowRankHead, head_from_state, low_rank, within
from .head import ClassHead, Scorer
from .images import balanced_weights, duplicate_groups
from .left_out import LeftOut
from .ridge import RidgeFit, fit_ridge
from .statistics import HeadStatistics
from .streaming import calibrated, fit_statistics, left_out_errors
from .updating import RidgeSettings, RidgeSums

__all__ = [
    "Candidate",
    "ClassHead",
    "HeadStatistics",
    "LeftOut",
    "LowRankHead",
    "RidgeFit",
    "RidgeSettings",
    "RidgeSums",
    "Scorer",
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
