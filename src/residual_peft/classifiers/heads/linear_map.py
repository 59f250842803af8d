"""A linear map of the embedding before the texts read it, held to the identity.

The logits are s t_k·(W x), with x of length 1 and W x left as long as it is, so that a class head
is all that there is to keep: V = s Wᵀ T. Of W = I + Δ only what tells texts apart matters: Δᵀ is
B Uᵀ with T − mean = U S Rᵀ, and ‖Δ‖ = ‖B‖, which has a column less than there are classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from .finishing import finish, log_losses, part_of
from .folds import FOLDS
from .head import ClassHead, FittedHead
from .images import Images, checked
from .minimising import scaled_minimum
from .paths import choose_strength
from .preparing import PrincipalAxes

DEFAULT_STRENGTH = 1e-1  # relative too, where one image per class leaves nothing to choose by
_PATIENCE = 3  # near the identity nothing changes for a while
_COARSE = 1e-4  # gradient of the fits that are only compared
_RANK = 1e-6  # of a direction that texts differ in, beside their length: below, it is rounding


@dataclass(frozen=True)
class LinearMapFit(FittedHead):
    """V = s Wᵀ T without mean, scale or offset, and what it says of images it did not see."""

    change: Tensor  # Δ, of which W = I + Δ (d, d)
    strength: float  # α of ½ α ‖Δ‖² beside the sum of the images' losses
    # (strength, log-loss of left-out images with τ fitted) as tried
    path: tuple[tuple[float, float], ...]
    gradient_norm: float  # the largest entry of the gradient at the end, by B in the images' axes

    @property
    def parameter_count(self) -> int:
        """Numbers trained: what tells texts apart in Δ, a column less than classes, and τ."""
        columns, classes = self.head.weights.shape
        return columns * (classes - 1) + 1


def fit_linear_map(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    logit_scale: float = 100.0,
    strength: float | None = None,
    strengths: Sequence[float] | None = None,
    class_weights: Tensor | None = None,
    groups: Tensor | None = None,
    folds: int = FOLDS,
    tolerance: float = 1e-5,
) -> LinearMapFit:
    """Minimise Σ_i w_i loss_i + ½ α ‖W − I‖², the cross-entropy of s t_k·(W x_i).

    Strictly convex in what the texts see of W. By L-BFGS, in the principal axes of the images and
    of the texts, outside of which Δ is 0.

    Args:
        features: x (N, d), of length 1.
        text: class embeddings (C, d).
        logit_scale: s.
        strength: α, in place of a choice.
        strengths: α to choose from by the log-loss of left-out folds; by default
            `paths.RELATIVE_STRENGTHS` times s² and the images' spread, and two between them.
            Weaker ones are not tried once they get no better.
        tolerance: largest entry of the gradient at the end, per image and unit of s.
    """
    text = functional.normalize(text.detach().cpu().double(), dim=1)
    data = checked(features, labels, len(text), class_weights=class_weights)
    if data.features.shape[1] != text.shape[1]:
        raise ResiDualError(
            f"wanted features as wide as the class embeddings, {text.shape[1]}, got "
            f"{data.features.shape[1]}: a linear map reads the embedding."
        )
    problem = _Problem(data, text, logit_scale)
    spread = data.features - data.weights @ data.features / data.weights.sum()
    level = logit_scale**2 * float(spread.square().sum(1).mean()) or 1.0
    chosen = choose_strength(
        problem,
        level,
        strength=strength,
        strengths=strengths,
        default=DEFAULT_STRENGTH,
        groups=groups,
        folds=folds,
        with_text=False,
        patience=_PATIENCE,
        tolerance=_COARSE,
    )
    solved, norm = problem.solve(chosen.strength, problem.zeros(), tolerance)
    left = problem.scores(solved) if chosen.left is None else chosen.left
    _, temperature, left_out = finish(left, data, chosen.how, chosen.known, with_text=False)
    change = problem.directions @ (problem.axes.axes @ solved).mT
    weights = logit_scale * (text + text @ change).mT
    nothing, one = torch.zeros(text.shape[1]), torch.ones(text.shape[1])
    head = ClassHead(
        nothing.double(), one.double(), weights, torch.zeros(len(text)).double(), 0.0, temperature
    )
    return LinearMapFit(head, left_out, change, chosen.strength, chosen.path, norm)


class _Problem:
    """The loss of some rows, with its gradient, over A (r, q): Δᵀ = Q A Uᵀ.

    Attributes:
        axes: of the images, Q.
        directions: of the texts, U (d, q).
    """

    def __init__(self, data: Images, text: Tensor, scale: float) -> None:
        self.data = data
        self.axes = PrincipalAxes.of(data.features)
        # what all classes share, softmax does not see: nor does the best Δ reach for it
        left, values, right = torch.linalg.svd((text - text.mean(0)).mT, full_matrices=False)
        kept = values > _RANK * text.norm()  # none, where all texts are one
        self.directions = left[:, kept]
        self.spread = scale * values[kept, None] * right[kept]  # s S Rᵀ (q, C)
        self.start = scale * data.features @ text.mT
        self.scale = scale

    def zeros(self) -> Tensor:
        """A of the identity."""
        return self.axes.rows.new_zeros(self.axes.rows.shape[1], len(self.spread))

    def scores(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (N, C) of the images, or some of them."""
        kept = slice(None) if rows is None else rows
        return self.start[kept] + self.axes.rows[kept] @ point @ self.spread

    def solve(
        self, strength: float, start: Tensor, tolerance: float, kept: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """A for the rows of `kept`, and the largest entry of its gradient.

        L-BFGS over A √h, with h the curvature of each entry at equal probabilities.
        """
        if not start.numel():  # all texts are one
            return start, 0.0
        dtype = torch.float64 if kept is None else torch.float32
        kept = torch.ones(len(self.start), dtype=torch.bool) if kept is None else kept
        data, rows, begin = part_of(self.data, kept), self.axes.rows[kept], self.start[kept]
        weights = data.weights[:, None]
        energy = (weights * rows.square()).sum(0)[:, None]
        steep = data.labelling.curvature(self.spread.shape[1]) * self.spread.square().sum(1)
        root = (strength + energy * steep).sqrt()
        products, spread = rows.to(dtype), self.spread.to(dtype)

        def function(point: Tensor) -> tuple[Tensor, Tensor]:
            logits = begin + ((products @ point.to(dtype)) @ spread).double()
            value = data.weights @ log_losses(logits, data)
            value = value + 0.5 * strength * point.square().sum()
            slope = weights * (data.labelling.probabilities(logits) - data.targets)
            gradient = (products.mT @ (slope.to(dtype) @ spread.mT)).double() + strength * point
            return value, gradient

        return scaled_minimum(function, start, root, tolerance * self.scale * len(rows))
