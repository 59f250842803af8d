"""The last projection fitted again, held to its own weights: ProLIP, and the linear map.

ProLIP (M. Fahes et al., 2024) fits CLIP's visual projection P on the features before it; the linear
map on the embedding is the same with P = I.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from .finishing import best_across_folds, folds_of, log_losses, part_of
from .images import Images
from .left_out import FOLDS
from .minimising import scaled_minimum
from .preparing import PrincipalAxes
from .rival import Rival, one_label, rival

_COARSE = 1e-3  # gradient of the fits that are only compared


@dataclass(frozen=True)
class Projection:
    """s cos(W x, t_k)."""

    matrix: Tensor  # W (d, D)
    text: Tensor  # class embeddings t, of unit length (C, d)
    logit_scale: float  # s

    @property
    def parameter_count(self) -> int:
        """d D."""
        return self.matrix.numel()

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Features x before the projection (M, D) -> (M, C)."""
        readout = features.cpu().double() @ self.matrix.mT
        return self.logit_scale * functional.normalize(readout, dim=1) @ self.text.mT


def fit_projection(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    *,
    start: Tensor | None = None,
    logit_scale: float = 100.0,
    strength: float | None = None,
    strengths: Sequence[float] | None = None,
    groups: Tensor | None = None,
    folds: int = FOLDS,
    tolerance: float = 1e-5,
) -> Rival:
    """Minimise mean cross-entropy + λ ‖W − P‖² over W, by L-BFGS from P on.

    The paper runs 300 steps of AdamW; the objective is its own. W − P is 0 outside the span of the
    images, so that it is sought in there.

    Args:
        features: x (N, D): before the projection, or the embedding itself.
        text: class embeddings (C, d).
        start: P (d, D); None for the identity, the linear map on the embedding.
        logit_scale: s.
        strength: λ; None for 1 / (images per class), the paper's without a validation set.
        strengths: λ to choose from by the log-loss of left-out folds, in place of `strength`.
        tolerance: largest entry of the gradient at the end; its square is the least change of the
            objective that is waited for.
    """
    text = functional.normalize(text.detach().cpu().double(), dim=1)
    data = one_label(features, labels, len(text), None)
    columns, width = data.features.shape[1], text.shape[1]
    start = torch.eye(width) if start is None else start
    if start.shape != (width, columns):
        raise ResiDualError(
            f"wanted a projection ({width}, {columns}) from the features to the class embeddings, "
            f"got {tuple(start.shape)}."
        )
    start = start.detach().cpu().double()
    problem = _Problem(data, Projection(start, text, logit_scale))
    fold, known, how = folds_of(data, groups, folds)
    default = 1 / (len(data.labels) / len(text))
    tried = [strength or default] if not strengths else sorted(strengths, reverse=True)
    if not min(tried) > 0:
        raise ResiDualError(f"wanted strengths of the penalty above 0, got {min(tried)}.")
    best, left = tried[0], None
    if fold is not None:

        def outside(kept: Tensor) -> Tensor:
            change, found = None, []
            for strength in tried:  # each from the last one's on
                change = problem.change(kept, strength, change, _COARSE)
                found.append(problem.scores(~kept, change))
            return torch.stack(found, 1)

        number, left = best_across_folds(outside, fold, data, known)
        best = tried[number]
    change = problem.change(torch.ones(len(data.labels)).bool(), best, None, tolerance)
    matrix = start + change @ problem.axes.axes.mT
    scorer = Projection(matrix, text, logit_scale)
    left = scorer.logits(data.features) if left is None else left
    return rival(scorer, left, data, how, known, with_text=False, chosen={"strength": best})


class _Problem:
    """W = P + Δ Qᵀ, with Q (D, r) the axes that the images span."""

    def __init__(self, data: Images, start: Projection) -> None:
        self.data, self.start = data, start
        self.axes = PrincipalAxes.of(data.features)
        self.readout = data.features @ start.matrix.mT

    def scores(self, rows: Tensor, change: Tensor) -> Tensor:
        readout = self.readout[rows] + self.axes.rows[rows] @ change.mT
        return self.start.logit_scale * functional.normalize(readout, dim=1) @ self.start.text.mT

    def change(
        self, kept: Tensor, strength: float, start: Tensor | None, tolerance: float
    ) -> Tensor:
        """Δ (d, r) for the rows of `kept`."""
        part = part_of(self.data, kept)
        weights = part.weights / part.weights.sum()
        # the curvature along each axis, so that one step suits them all
        energy = self.axes.energy / len(self.data.labels)
        steep = (self.start.logit_scale / float(self.readout.norm(dim=1).mean())) ** 2
        root = (2 * strength + 0.1 * steep * energy).sqrt()

        targets, rows = part.targets, self.axes.rows[kept]
        text, scale = self.start.text, self.start.logit_scale

        def function(change: Tensor) -> tuple[Tensor, Tensor]:
            readout = self.readout[kept] + rows @ change.mT
            length = readout.norm(dim=1, keepdim=True).clamp(min=1e-12)
            unit = readout / length
            logits = scale * unit @ text.mT
            value = weights @ log_losses(logits, part) + strength * change.square().sum()
            slope = scale * (weights[:, None] * (logits.softmax(1) - targets)) @ text
            # of a vector's length nothing depends
            slope = (slope - unit * (unit * slope).sum(1, keepdim=True)) / length
            return value, slope.mT @ rows + 2 * strength * change

        if start is None:
            start = torch.zeros(self.start.matrix.shape[0], len(energy), dtype=torch.float64)
        options = {"change": tolerance**2, "max_iterations": 300}
        return scaled_minimum(function, start, root, tolerance, **options)[0]
