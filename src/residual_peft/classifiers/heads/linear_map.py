"""A linear map of the embedding before the texts read it, held to the identity.

The logits are s t_k·(W x), with x of length 1 and W x left as long as it is, so that a class head
is all that there is to keep: V = s Wᵀ T. Of W = I + Δ only what tells texts apart matters: Δᵀ is
B Uᵀ with T − mean = U S Rᵀ, and ‖Δ‖ = ‖B‖, which has a column less than there are classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from .head import ClassHead
from .images import checked
from .left_out import FOLDS
from .paths import PathFit, Problem, solve_at_best
from .preparing import PrincipalAxes

DEFAULT_STRENGTH = 1e-1  # relative too, where one image per class leaves nothing to choose by
_PATIENCE = 3  # near the identity nothing changes for a while
_RANK = 1e-6  # of a direction that texts differ in, beside their length: below, it is rounding


@dataclass(frozen=True)
class LinearMapFit(PathFit):
    """V = s Wᵀ T without mean, scale or offset, and what it says of images it did not see."""

    change: Tensor  # Δ, of which W = I + Δ (d, d)

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
        strength: α, in place of a choice by the log-loss of left-out folds: of
            `paths.RELATIVE_STRENGTHS` times s² and the images' spread, and two between them.
            Weaker ones are not tried once they get no better.
        tolerance: largest entry of the gradient at the end, per image and unit of s.

    Raises:
        ResiDualError: features of another width than the texts', or a strength that is not above 0.
    """
    text = functional.normalize(text.detach().cpu().double(), dim=1)
    data = checked(features, labels, len(text), class_weights=class_weights)
    if data.features.shape[1] != text.shape[1]:
        raise ResiDualError(
            f"wanted features as wide as the class embeddings, {text.shape[1]}, got "
            f"{data.features.shape[1]}: a linear map reads the embedding."
        )
    axes, (directions, apart) = PrincipalAxes.of(data.features), _directions(text, logit_scale)
    start = logit_scale * data.features @ text.mT
    problem = Problem(data, axes.rows, start, apart)
    spread = data.features - data.weights @ data.features / data.weights.sum()
    level = logit_scale**2 * float(spread.square().sum(1).mean()) or 1.0
    found = solve_at_best(
        problem,
        level,
        tolerance=tolerance * logit_scale,
        default=DEFAULT_STRENGTH,
        strength=strength,
        groups=groups,
        folds=folds,
        with_text=False,
        patience=_PATIENCE,
        coarse=tolerance * logit_scale,  # stopped sooner, fits tie and rounding chooses
    )
    change = directions @ (axes.axes @ found.coefficients).mT
    weights = logit_scale * (text + text @ change).mT
    nothing, one = torch.zeros_like(weights[:, 0]), torch.ones_like(weights[:, 0])
    head = ClassHead(nothing, one, weights, torch.zeros_like(weights[0]), 0.0, found.temperature)
    return LinearMapFit(**vars(found.with_head(head)), change=change)


def _directions(text: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """U (d, q) and s S Rᵀ (q, C) of what tells texts apart; q is 0 where all are one."""
    # what all classes share, softmax does not see: nor does the best Δ reach for it
    left, values, right = torch.linalg.svd((text - text.mean(0)).mT, full_matrices=False)
    kept = values > _RANK * text.norm()
    return left[:, kept], scale * values[kept, None] * right[kept]
