"""Ridge in closed form, its strength by exact leave-one-out (`method.md`, section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ResiDualError
from .head import ClassHead, FittedHead
from .images import Images, above_zero, checked, oddities
from .left_out import How, Leaving, LeftOut, leaving_of
from .smoother import Smoother
from .strengths import Choosing, Chosen, beside_text
from .updating import RidgeSettings

STRENGTHS = tuple(10 ** (step / 2) for step in range(4, -9, -1))
"""α tried, from strong to weak, in mean squared lengths of a row; twice as many do no better."""


@dataclass(frozen=True)
class RidgeFit(FittedHead):
    """A ridge's head, and how it came about."""

    # the strength, one number per class (C,); all equal unless images have several labels
    alpha: Tensor
    alphas: Tensor  # that were tried, from strong to weak (A,)
    # what chose among them, of the left-out predictions (A,), or (A, C); empty where nothing can be
    # left out
    losses: Tensor
    power: float  # p of the scales
    notes: tuple[str, ...] = ()  # what the user should know of the images
    # what is said of every image by fits without its fold, strength and calibration chosen anew: to
    # be compared with methods that leave out no less
    by_folds: LeftOut | None = None
    # a₀ where V is fitted to what softmax(a₀ z) leaves of the labels; 0 where to the labels
    # themselves
    prior: float = 0.0
    # what was chosen, for `RidgeSums` to change the head by; None where V is fitted to what the
    # text leaves, which no sums know of other images
    settings: RidgeSettings | None = None


def fit_ridge(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    zero_shot: Tensor | None = None,
    power: float = 0.5,
    alphas: Sequence[float] | Tensor | None = None,
    groups: Tensor | Sequence[object] | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
    scale: Tensor | None = None,
    leave: How | None = None,
    primal: bool | None = None,
    folds: Tensor | None = None,
    residual: bool | None = None,
) -> RidgeFit:
    """Fit a class head in closed form, with everything chosen on left-out training images.

    One eigendecomposition of the smaller side gives every strength and what a fit without each
    image, without one image of each class or without each group would say of what it leaves out;
    scales and text are held. The strength is that of the least left-out squared error of the
    one-hot labels, as scikit-learn's `RidgeClassifierCV` has it, and text weight and temperature
    are fitted on the same predictions. Draws nothing at random. Computed in float64 on
    the CPU; several labels are fitted by one ridge per class with its own strength.

    Args:
        zero_shot: must not have seen the image either: that of class means is to leave it out.
        alphas: strengths to try, above 0; by default `STRENGTHS` times the mean squared length of
            a centred and scaled row.
        class_weights: see `balanced_weights`.
        scale: (K,) to divide by in place of std^p, such as an earlier fit's.
        leave: what is left out with an image, see `leaving_of`; None for what suits.
        primal: which side is decomposed; None for the smaller one.
        folds: (N,), a second way to leave images out, for `RidgeFit.by_folds`.
        residual: whether V is fitted to what the text gets wrong, Y − softmax(a₀ z), in place of Y,
            as ProKeR (Bendou et al., 2025) has it; None for what left-out log-loss says clearly. It
            adds up to 10 points where the text is worth something and images few, and nothing else
            changes: the logits are a z + τ (c̃ V + m) either way. For one label per image.
    """
    images = checked(
        features, labels, class_count, zero_shot=zero_shot, class_weights=class_weights
    )
    leaving = leaving_of(images.labels, class_count, groups, leave)
    if scale is not None:
        scale = above_zero(scale, images.features.shape[1], "scale", "features")
    smoother = Smoother.of(images, power, scale, primal)
    strengths = strengths_of(alphas, smoother.size)
    notes = oddities(images, groups is not None)
    choose = Choosing(images, smoother, strengths, residual)
    chosen = choose.among(leaving)
    centred, offset = smoother.centred(beside_text(images, chosen.prior))
    weights = smoother.weights(centred, chosen.alpha)
    head = ClassHead(
        smoother.mean,
        smoother.scale,
        weights * chosen.slopes,
        offset * chosen.slopes + chosen.biases,
        chosen.calibration.text_weight,
        chosen.calibration.temperature,
    )
    left_out = _left_out(chosen, images, leaving)
    by_folds = None
    if folds is not None:
        apart = leaving_of(images.labels, class_count, folds)
        by_folds = _left_out(choose.among(apart), images, apart)
    return RidgeFit(
        head,
        left_out,
        chosen.alpha,
        strengths,
        chosen.losses,
        power,
        notes,
        by_folds,
        chosen.prior,
        _settings(chosen, smoother.scale, class_weights),
    )


def _settings(
    chosen: Chosen, scale: Tensor, class_weights: Tensor | Sequence[float] | None
) -> RidgeSettings | None:
    """What sums give the head again by; None where the ridge is of what the text leaves."""
    if chosen.prior:
        return None
    weights = torch.ones_like(chosen.alpha) if class_weights is None else class_weights
    weights = torch.as_tensor(weights, dtype=torch.float64).cpu()
    return RidgeSettings(chosen.alpha, scale, chosen.slopes, chosen.biases, weights)


def _left_out(chosen: Chosen, images: Images, leaving: Leaving) -> LeftOut:
    """The left-out scores with all that was chosen on them."""
    logits = chosen.calibration.temperature * (chosen.scores * chosen.slopes + chosen.biases)
    if images.zero_shot is not None:
        logits = logits + chosen.calibration.text_weight * images.zero_shot
    return LeftOut(logits, images.labels, leaving.how, leaving.known)


def strengths_of(alphas: float | Sequence[float] | Tensor | None, size: float) -> Tensor:
    """Strengths to try, from strong to weak (A,); None for `STRENGTHS` times a row's size."""
    if alphas is None:
        return torch.tensor(STRENGTHS, dtype=torch.float64) * size
    found = torch.as_tensor(alphas, dtype=torch.float64).flatten().sort(descending=True).values
    if len(found) == 0 or not (torch.isfinite(found) & (found > 0)).all():
        raise ResiDualError(
            f"wanted strengths above 0 to try, got {found.tolist()[:5]}: without any, an image is "
            "fitted to the letter and says nothing once left out."
        )
    return found
