"""Multinomial logistic regression with a ridge, on features that may be far more than images."""

import torch
from torch import Tensor

from .head import ClassHead
from .images import checked
from .left_out import FOLDS
from .paths import PathFit, Problem, solve_at_best
from .preparing import PrincipalAxes, scaling

DEFAULT_STRENGTH = 1e-2  # relative too, where one image per class leaves nothing to choose by


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    zero_shot: Tensor | None = None,
    start: ClassHead | None = None,
    strength: float | None = None,
    power: float = 0.5,
    class_weights: Tensor | None = None,
    groups: Tensor | None = None,
    folds: int = FOLDS,
    tolerance: float = 1e-7,
) -> PathFit:
    """Logistic regression on centred and scaled features, its ridge chosen on left-out folds.

    Minimises Σ_i w_i loss_i + ½ α ‖V‖², which is strictly convex in V: softmax cross-entropy with
    one label per image, one sigmoid per class with several. The offset is free. Solved by L-BFGS
    in the principal axes of the images, outside of which V is 0. The text's weight a is fitted on
    left-out folds, with τ.

    Args:
        start: a ridge's head on the same features: its centre and scales are taken, and the last
            fit starts at its weights. Where the optimum is does not depend on it.
        strength: α, scikit-learn's 1 / C, in place of a choice: of `paths.RELATIVE_STRENGTHS` times
            the mean squared length of the prepared features, and two between them. Weaker ones are
            not tried once they get no better.
        power: p, where no `start` brings its scales.
        tolerance: largest entry of the gradient at the end, per image.

    Raises:
        ResiDualError: a strength that is not above 0.
    """
    data = checked(features, labels, class_count, zero_shot=zero_shot, class_weights=class_weights)
    mean, scale = (start.mean, start.scale) if start else scaling(data, power)
    mean, scale = mean.double(), scale.double()
    prepared = (data.features - mean) / scale
    axes = PrincipalAxes.of(prepared)
    rows = torch.hstack([axes.rows, torch.ones_like(axes.rows[:, :1])])  # the offset is last
    problem = Problem(data, rows, torch.zeros_like(data.targets), free=1)
    level = float(prepared.square().sum(1).mean()) or 1.0
    first = None
    if start is not None:
        raw = start.temperature * torch.vstack([start.weights, start.offset]).double()
        first = torch.vstack([axes.axes.mT @ raw[:-1], raw[-1:]])
    found = solve_at_best(
        problem,
        level,
        start=first,
        tolerance=tolerance,
        default=DEFAULT_STRENGTH,
        strength=strength,
        groups=groups,
        folds=folds,
    )
    weights, offset = axes.axes @ found.coefficients[:-1], found.coefficients[-1]
    head = ClassHead(mean, scale, weights, offset, found.text_weight, found.temperature)
    return found.with_head(head)
