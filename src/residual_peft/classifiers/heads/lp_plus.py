"""LP++ (Y. Huang et al., CVPR 2024): a linear probe with one text weight per class."""

import torch
from torch import Tensor
from torch.nn import functional

from .finishing import best_across_folds, folds_of, part_of, text_alone
from .images import Images
from .preparing import PrincipalAxes
from .rival import LinearScorer, Rival, Shots, on_unit_rows, rival

STOPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000)
"""Steps after which the descent may stop; the paper's 300 where nothing can be told."""
DEFAULT_STOP = 300


@on_unit_rows
def fit_lp_plus(shots: Shots) -> Rival:
    """LP++, fᵀ w_k + α_k z_k, by its block descent, stopped where left-out folds are told best.

    The loss is the mean cross-entropy; nothing penalises w, so that stopping is all that keeps it
    from fitting noise. The paper stops by accuracy on a validation set.
    """
    data = shots.data
    axes = PrincipalAxes.of(shots.unit)
    fold, known, how = folds_of(data, shots.groups)
    best, left = DEFAULT_STOP, None
    if fold is not None:

        def outside(kept: Tensor) -> Tensor:
            text = None if data.zero_shot is None else data.zero_shot[~kept]
            path = descend(axes.rows[kept], part_of(data, kept), STOPS)
            return torch.stack([_scores(axes.rows[~kept], *point, text) for point in path], 1)

        number, left = best_across_folds(outside, fold, data, known)
        best = STOPS[number]
    weights, text_weights = descend(axes.rows, data, (best,))[0]
    if left is None:
        left = _scores(axes.rows, weights, text_weights, data.zero_shot)
    alpha = None if data.zero_shot is None else text_weights
    scorer = LinearScorer(shots.rows, axes.axes @ weights, text_weights=alpha)
    return rival(scorer, left, data, how, known, with_text=False, chosen={"steps": best})


def descend(rows: Tensor, images: Images, stops: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """w (K, C) and α (C,) after each of increasing numbers of steps, from rows f (N, K).

    Block coordinate majorise-minimise: each block by turns moves by its gradient over its Lipschitz
    constant. The Hessian of the cross-entropy in the logits of an image is at most ½ I (D. Böhning,
    1992), hence ½ λ_max(Fᵀ F) / N for w and ½ max_k Σ_i z_ik² / N for α. It starts at the
    class means and at the zero-shot logits as sure as they may be.
    """
    targets, text = images.targets, images.zero_shot
    share = images.weights[:, None] / images.weights.sum()
    weights = functional.normalize(rows.mT @ (share * targets), dim=0)
    text_weights = torch.full((targets.shape[1],), text_alone(images), dtype=torch.float64)
    steep = 0.5 * float(torch.linalg.matrix_norm(share.sqrt() * rows, 2)) ** 2
    text_steep = 0.0 if text is None else 0.5 * float((share * text.square()).sum(0).max())
    found = []
    for step in range(max(stops) + 1):
        if step in stops:
            found.append((weights, text_weights))
        if step == max(stops):
            break
        slope = share * (_scores(rows, weights, text_weights, text).softmax(1) - targets)
        weights = weights - rows.mT @ slope / steep
        if text is not None and text_steep > 0:
            slope = share * (_scores(rows, weights, text_weights, text).softmax(1) - targets)
            text_weights = text_weights - (slope * text).sum(0) / text_steep
    return found


def _scores(rows: Tensor, weights: Tensor, text_weights: Tensor, text: Tensor | None) -> Tensor:
    found = rows @ weights
    return found if text is None else found + text_weights * text
