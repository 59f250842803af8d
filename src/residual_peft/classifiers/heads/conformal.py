"""Sets of classes that hold the right one as often as asked, by held-out or left-out images.

The score of a class is −log p. What each promises of a new image drawn like the others, with n
calibration images and coverage 1 − α:

* held-out: images that no fit saw; at least 1 − α on average over draws of the images (V. Vovk et
  al., 2005), and at most 1 − α + 1 / (n + 1);
* jackknife+ (R. Barber et al., 2021; `jackknife_plus`), with parts CV+: at least 1 − 2 α for fits
  that choose all anew, near 1 − α in practice;
* jackknife: scores of left-out images against the fit on all; nothing for certain, near 1 − α from
  2 images per class on (handwriting, `benchmarks/heads_trust.json`).

None of them promises anything for one class or one image by itself, nor for images of new groups
(of new persons) where those of one are alike: they are not drawn like the others.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from ...data.labels import labelling_in
from ...errors import ResiDualError
from .left_out import LeftOut

By = Literal["held-out", "jackknife+", "jackknife"]
WAYS: tuple[By, ...] = get_args(By)
"""The surest first."""
MOST_SCORES = 10_000
"""That are kept; of more, as many quantiles."""
_IMAGES: dict[By, str] = {
    "held-out": "{:,} held-out images",
    "jackknife+": "jackknife+ of {:,} training images",
    "jackknife": "the jackknife of {:,} training images",
}


@dataclass(frozen=True)
class Covering:
    """What sets of classes come from.

    Raises:
        ResiDualError: a coverage outside (0, 1), or too few images for it: every class would be in
            every set.
    """

    scores: Tensor  # −log p of n images' own classes (n,), by fits that did not see them
    coverage: float  # that was asked for, 1 − α
    by: By  # what stands behind it, see above
    # whether they came in groups, whose images are alike
    grouped: bool = field(default=False, kw_only=True)

    @property
    def images(self) -> int:
        """n."""
        return len(self.scores)

    def __post_init__(self) -> None:
        if self.images < (least := fewest(self.coverage)):
            raise ResiDualError(
                f"wanted {least:,} images or more for sets of classes that hold the right one "
                f"{100 * self.coverage:g} times of 100, got {_IMAGES[self.by].format(self.images)}:"
                " bring more, or ask for less."
            )

    @property
    def told(self) -> str:
        """What they come from, in words: "by 40 held-out images: at least 90 % on average"."""
        said = f"by {_IMAGES[self.by].format(self.images)}"
        if self.by != "held-out":
            return said
        share = f"{100 * self.coverage:g} %"
        if self.grouped:
            return (
                f"{said}: near {share} of images of their groups, nothing is promised of new ones"
            )
        return f"{said}: at least {share} on average"


@dataclass(frozen=True)
class PredictionSets(Covering):
    """Sets of the classes whose −log p is at most a threshold."""

    @cached_property
    def threshold(self) -> float:
        """Classes whose score is at most this are in the set."""
        return upper_quantile(self.scores.double(), self.coverage)

    def sets(self, logits: Tensor) -> Tensor:
        """Which classes are in each image's set, (M, C) -> bool (M, C).

        A set may be empty, where no class is likely enough: more accurate classifiers than the
        coverage asks for leave some so.
        """
        return -logits.detach().cpu().double().log_softmax(1) <= self.threshold


def fewest(coverage: float) -> int:
    """The fewest images that give sets at a coverage.

    >>> fewest(0.9), fewest(0.95), fewest(0.5)
    (9, 19, 1)

    Raises:
        ResiDualError: a coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise ResiDualError(f"wanted a coverage between 0 and 1, got {coverage}.")
    return max(1, math.ceil(coverage / (1 - coverage) - 1e-6))


def upper_quantile(scores: Tensor, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score; inf where that is beyond the largest."""
    rank = max(1, math.ceil((len(scores) + 1) * coverage - 1e-9))
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf


def kept_scores(logits: Tensor, labels: Tensor) -> Tensor | None:
    """−log p of each image's own class, sorted (n,); of many, `MOST_SCORES` quantiles, rounded up.

    None with several labels per image. The fit has not seen the images.
    """
    surprise = labelling_in(labels).surprise(logits, labels)
    if surprise is None or not len(labels):
        return None
    scores = surprise.sort().values
    if len(scores) > MOST_SCORES:
        places = torch.arange(1, MOST_SCORES + 1) * len(scores) - 1  # in whole numbers
        scores = scores[places // MOST_SCORES]
    kept = scores.float()
    # up again: else a new image just like one of these, if right, is not in its set by rounding
    return torch.where(kept < scores, kept.nextafter(torch.tensor(torch.inf)), kept)


def scores_of(left_out: LeftOut) -> Tensor | None:
    """`kept_scores` of the training images whose class was known without them."""
    known = left_out.known
    return kept_scores(left_out.logits[known], left_out.labels[known])


def checked_scores(scores: Tensor | None, where: str) -> Tensor | None:
    """Scores that were read, or what is wrong with them."""
    if scores is not None and (scores.ndim != 1 or not scores.isfinite().all()):
        raise ResiDualError(f"{where} holds other scores of images than finite numbers.")
    return None if scores is None else scores.float().sort().values
