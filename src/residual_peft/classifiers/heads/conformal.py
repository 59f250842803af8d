"""Sets of classes that hold the right one as often as asked: jackknife, jackknife+, split.

The score of a class is −log p. What each promises of a new image drawn like the others, with n
calibration images and coverage 1 − α:

* split: images that no fit saw; at least 1 − α on average over draws of the images (V. Vovk et al.,
  2005), and at most 1 − α + 1 / (n + 1);
* jackknife+ (R. Barber et al., 2021), with folds CV+: at least 1 − 2 α, near 1 − α in practice;
* jackknife: scores of left-out images against the fit on all; nothing for certain, near 1 − α from
  16 images per class on, above it with fewer (measured, `method.md`, section 8).

None of them promises anything for one class or one image by itself; sets per class do for a class.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, check_same, labelling_in
from ...errors import ResiDualError
from .head import ClassHead
from .left_out import Leaving, LeftOut
from .preparing import PrincipalAxes

Promise = Literal["jackknife", "jackknife+", "split"]


@dataclass(frozen=True)
class PredictionSets:
    """A threshold on −log p, from images whose class is known.

    Attributes:
        threshold: classes whose score is at most this are in the set (1,), or each class's own
            (C,); inf where there are too few images for that coverage, so that it is in every set.
        coverage: that was asked for, 1 − α.
        promise: what stands behind it, see above.
        images: n, how many scores it comes from.
    """

    threshold: Tensor
    coverage: float
    promise: Promise
    images: int

    @property
    def guaranteed(self) -> float:
        """The coverage that is certain on average over draws of the images; 0 where none is."""
        return self.coverage if self.promise == "split" else 0.0

    def sets(self, logits: Tensor, *, empty: bool = True) -> Tensor:
        """Which classes are in each image's set, (M, C) -> bool (M, C).

        Args:
            logits: final ones, of the fit that it was made for.
            empty: whether a set may be empty, where no class is likely enough: more accurate
                classifiers than the coverage asks for leave some so. Otherwise the likeliest class
                is always in it, and coverage is above what was asked.
        """
        scores = -logits.detach().cpu().double().log_softmax(1)
        found = scores <= self.threshold
        if not empty:
            found[torch.arange(len(scores)), scores.argmin(1)] = True
        return found


def jackknife_sets(
    left_out: LeftOut, coverage: float = 0.9, *, per_class: bool = False
) -> PredictionSets:
    """Sets from left-out predictions of the training images: nothing is held out, nothing promised.

    Args:
        left_out: of the fit whose logits the sets are to be of.
        coverage: 1 − α.
        per_class: a threshold for each class, from its own images; at .9 a class needs 9.

    Raises:
        ResiDualError: a coverage outside (0, 1); several labels per image; nothing left out.
    """
    if left_out.how == "none" or not left_out.known.any():
        raise ResiDualError(
            "wanted predictions of left-out images to make prediction sets of, got none, as no "
            "class has a second image: give two or more images per class, or hold some out."
        )
    known = left_out.known
    return _sets(left_out.logits[known], left_out.labels[known], coverage, per_class, "jackknife")


def split_sets(
    logits: Tensor, labels: Tensor, coverage: float = 0.9, *, per_class: bool = False
) -> PredictionSets:
    """Sets from images that were held out from everything.

    Args:
        logits: of n held-out images (n, C).
        labels: (n,).
        coverage: 1 − α.
        per_class: as for `jackknife_sets`.

    Raises:
        ResiDualError: a coverage outside (0, 1); several labels per image; no images.
    """
    return _sets(logits, labels, coverage, per_class, "split")


def _sets(
    logits: Tensor, labels: Tensor, coverage: float, per_class: bool, promise: Promise
) -> PredictionSets:
    _check(labels, coverage)
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    scores = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    classes = range(logits.shape[1]) if per_class else ()
    own = [scores[labels == label] for label in classes] or [scores]
    threshold = torch.tensor([upper_quantile(some, coverage) for some in own], dtype=torch.float64)
    return PredictionSets(threshold, coverage, promise, len(scores))


def upper_quantile(scores: Tensor, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score; inf where that is beyond the largest."""
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else math.inf


def _check(labels: Tensor, coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ResiDualError(f"wanted a coverage between 0 and 1, got {coverage}.")
    check_same(ONE_LABEL, labelling_in(labels), "prediction sets are made of one")
    if not len(labels):
        raise ResiDualError("wanted at least one image to make prediction sets of, got none.")


@dataclass(frozen=True)
class RidgeWithout:
    """Logits of new images by every fit without a part of the training images, in closed form.

    The ridge on all images fits what it would have said without a part B, moved by the part's
    left-out errors: f(x) = f₋B(x) + h(x, B) (y_B − f₋B(x_B)), with h(x, i) = w_i (c̃_xᵀ (C̃ᵀ W C̃ +
    α I)⁻¹ c̃_i + 1 / Σ w). So one product gives f₋B(x) for every part. Basis, scales, α, a and τ are
    those of the fit on all images.

    Attributes:
        head: of the fit on all images.
        axes: principal axes of the rows √w c̃.
        reach: √w C̃ in those axes, over e + α (N, r).
        roots: √w (N,).
        errors: y_i − f₋B(x_i), without a and τ (N, C).
        scores: −log p of each image's own class without it (N,).
        parts: rows left out together.
    """

    head: ClassHead
    axes: Tensor
    reach: Tensor
    roots: Tensor
    errors: Tensor
    scores: Tensor
    parts: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        head: ClassHead,
        alpha: float,
        left_out: LeftOut,
        leaving: Leaving,
        features: Tensor,
        weights: Tensor,
        zero_shot: Tensor | None = None,
        prior: float = 0.0,
    ) -> "RidgeWithout":
        """From a fitted ridge and the images that it was fitted on.

        Args:
            head: fitted on all images, one label each.
            alpha: its α.
            left_out: its left-out predictions.
            leaving: which images were left out together.
            features: (N, K) of the training images.
            weights: of the images (N,).
            zero_shot: z (N, C), where the head weighs it.
            prior: the fit's `prior`.

        Raises:
            ResiDualError: nothing was left out.
        """
        if left_out.how == "none":
            raise ResiDualError(
                "wanted a fit that left images out, for jackknife+, got one of single images."
            )
        roots = weights.double().sqrt()
        rows = (features.cpu().double() - head.mean.double()) / head.scale.double()
        axes = PrincipalAxes.of(rows * roots[:, None])
        raw = left_out.logits.double()
        if head.text_weight and zero_shot is not None:
            raw = raw - head.text_weight * zero_shot.cpu().double()
        targets = torch.nn.functional.one_hot(left_out.labels, raw.shape[1]).double()
        if prior and zero_shot is not None:
            targets = targets - (prior * zero_shot.cpu().double()).softmax(1)
        own = -left_out.logits.double().log_softmax(1).gather(1, left_out.labels[:, None])[:, 0]
        return cls(
            head,
            axes.axes,
            axes.rows / (axes.energy + alpha),
            roots,
            targets - raw / head.temperature,
            own,
            leaving.parts,
        )

    def logits(
        self, features: Tensor, zero_shot: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part's rows, and the logits (M, C) of new images by the fit without it."""
        whole = self.head.logits(features, zero_shot).double()
        rows = (features.cpu().double() - self.head.mean.double()) / self.head.scale.double()
        share = self.roots / self.roots.square().sum()
        pull = ((rows @ self.axes) @ self.reach.mT + share) * self.roots
        for part in self.parts:
            yield part, whole - self.head.temperature * pull[:, part] @ self.errors[part]

    def sets(
        self, features: Tensor, zero_shot: Tensor | None = None, *, coverage: float = 0.9
    ) -> Tensor:
        """Jackknife+ sets (CV+ where parts hold several images), bool (M, C).

        A class is in the set unless its score, by the fit without an image, is above the image's
        own for (1 − α) (N + 1) images or more (Y. Romano et al., 2020). Certain coverage: 1 − 2 α.

        Args:
            features: of M new images (M, K).
            zero_shot: z (M, C), where the head weighs it.
            coverage: 1 − α.

        Raises:
            ResiDualError: a coverage outside (0, 1).
        """
        _check(torch.zeros(len(self.scores)), coverage)
        above = torch.zeros(len(features), len(self.head.offset), dtype=torch.float64)
        for part, logits in self.logits(features, zero_shot):
            scores = -logits.log_softmax(1)
            ordered = self.scores[part].sort().values
            above += torch.searchsorted(ordered, scores.contiguous()).double()
        return above < coverage * (len(self.scores) + 1) - 1e-9


def coverage_interval(
    calibration: int, test: int, coverage: float, *, draws: int = 1, level: float = 0.95
) -> tuple[float, float]:
    """Where the observed coverage lies with split conformal, pooled over draws.

    Given n calibration images, the number covered of m new ones is beta-binomial with a =
    ⌈(n + 1) (1 − α)⌉ and b = n + 1 − a (V. Vovk, 2012); over draws its distribution is convolved.

    Args:
        calibration: n, in each draw.
        test: m, in each draw.
        coverage: 1 − α.
        draws: independent ones, each with images of its own.
        level: of the interval, two-sided.

    Returns:
        Lowest and highest share covered.
    """
    import numpy as np
    from scipy.stats import betabinom

    rank = min(math.ceil((calibration + 1) * coverage - 1e-9), calibration + 1)
    if rank > calibration:
        return 1.0, 1.0
    one = betabinom.pmf(np.arange(test + 1), test, rank, calibration + 1 - rank)
    whole = np.ones(1)
    for _ in range(draws):
        whole = np.convolve(whole, one)
    below = whole.cumsum()
    low = int(np.searchsorted(below, (1 - level) / 2))
    high = int(np.searchsorted(below, (1 + level) / 2))
    return low / (draws * test), high / (draws * test)
