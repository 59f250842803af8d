"""Multinomial logistic regression with a ridge, on features that may be far more than images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .finishing import finish, log_losses, part_of
from .folds import FOLDS
from .head import ClassHead, FittedHead
from .images import Images, checked
from .minimising import scaled_minimum
from .paths import choose_strength
from .preparing import PrincipalAxes, scaling

DEFAULT_STRENGTH = 1e-2  # relative too, where one image per class leaves nothing to choose by


@dataclass(frozen=True)
class LogisticFit(FittedHead):
    """A logistic regression and what it says of images it did not see, fold by fold."""

    strength: float  # α of ½ α ‖V‖² beside the sum of the images' losses; scikit-learn's 1 / C
    # (strength, log-loss of left-out images with a and τ fitted) as tried
    path: tuple[tuple[float, float], ...]
    gradient_norm: float  # the largest entry of the gradient at the end


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    zero_shot: Tensor | None = None,
    start: ClassHead | None = None,
    strength: float | None = None,
    strengths: Sequence[float] | None = None,
    power: float = 0.5,
    class_weights: Tensor | None = None,
    groups: Tensor | None = None,
    folds: int = FOLDS,
    tolerance: float = 1e-7,
) -> LogisticFit:
    """Logistic regression on centred and scaled features, its ridge chosen on left-out folds.

    Minimises Σ_i w_i loss_i + ½ α ‖V‖², which is strictly convex in V: softmax cross-entropy with
    one label per image, one sigmoid per class with several. The offset is free. Solved by L-BFGS
    in the principal axes of the images, outside of which V is 0. The text's weight a is fitted on
    left-out folds, with τ.

    Args:
        start: a ridge's head on the same features: its centre and scales are taken, and the last
            fit starts at its weights. Where the optimum is does not depend on it.
        strength: α, in place of a choice.
        strengths: α to choose from; by default `paths.RELATIVE_STRENGTHS` times the mean squared
            length of the prepared features, and two between them. Weaker ones are not tried once
            they get no better.
        power: p, where no `start` brings its scales.
        tolerance: largest entry of the gradient at the end, per image.
    """
    data = checked(features, labels, class_count, zero_shot=zero_shot, class_weights=class_weights)
    mean, scale = (start.mean, start.scale) if start else scaling(data, power)
    mean, scale = mean.double(), scale.double()
    prepared = (data.features - mean) / scale
    axes = PrincipalAxes.of(prepared)
    problem = _Problem(axes.rows, data)
    level = float(prepared.square().sum(1).mean()) or 1.0
    chosen = choose_strength(
        problem,
        level,
        strength=strength,
        strengths=strengths,
        default=DEFAULT_STRENGTH,
        groups=groups,
        folds=folds,
    )
    first = problem.zeros()
    if start is not None:
        raw = start.temperature * torch.vstack([start.weights, start.offset]).double()
        first = torch.vstack([axes.axes.mT @ raw[:-1], raw[-1:]])
    solved, norm = problem.solve(chosen.strength, first, tolerance)
    left = problem.scores(solved) if chosen.left is None else chosen.left
    text_weight, temperature, left_out = finish(left, data, chosen.how, chosen.known)
    head = ClassHead(mean, scale, axes.axes @ solved[:-1], solved[-1], text_weight, temperature)
    return LogisticFit(head, left_out, chosen.strength, chosen.path, norm)


def with_offset(rows: Tensor) -> Tensor:
    """Rows (N, r) with a last column of ones, (N, r + 1)."""
    return torch.hstack([rows, torch.ones_like(rows[:, :1])])


class _Problem:
    """The loss of some rows, with its gradient, over A (r + 1, C); the last row is the offset."""

    def __init__(self, rows: Tensor, data: Images) -> None:
        self.rows, self.data = with_offset(rows), data

    def zeros(self) -> Tensor:
        return self.rows.new_zeros(self.rows.shape[1], self.data.targets.shape[1])

    def scores(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return (self.rows if rows is None else self.rows[rows]) @ point

    def solve(
        self, strength: float, start: Tensor, tolerance: float, kept: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """A (r + 1, C) for the rows of `kept`, and the largest entry of its gradient.

        L-BFGS over A √h, with h the curvature of each axis at equal probabilities: the rows'
        columns are orthogonal, so that h is all there is to know of it. In float64 on all rows.
        """
        dtype = torch.float64 if kept is None else torch.float32
        kept = torch.ones(len(self.rows), dtype=torch.bool) if kept is None else kept
        rows, data = self.rows[kept], part_of(self.data, kept)
        weights, classes = data.weights[:, None], data.targets.shape[1]
        labelling = data.labelling
        spread = labelling.curvature(classes)
        penalty = torch.full((rows.shape[1], 1), strength, dtype=torch.float64)
        penalty[-1] = 0.0
        root = (penalty + spread * (weights * rows.square()).sum(0)[:, None]).sqrt()

        products = rows.to(dtype)

        def function(point: Tensor) -> tuple[Tensor, Tensor]:
            logits = (products @ point.to(dtype)).double()
            value = data.weights @ log_losses(logits, data)
            value = value + 0.5 * (penalty * point.square()).sum()
            slope = weights * (labelling.probabilities(logits) - data.targets)
            gradient = (products.mT @ slope.to(dtype)).double() + penalty * point
            return value, gradient

        return scaled_minimum(function, start, root, tolerance * len(rows))
