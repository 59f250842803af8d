"""GDA (Z. Wang et al., ICLR 2024): Gaussian discriminant analysis beside the zero-shot logits."""

import torch
from torch import Tensor

from .finishing import across_folds, folds_of
from .images import ROUNDING
from .nearest import DEFAULT_TEMPERATURE
from .rival import LinearScorer, Rival, Shots, on_unit_rows, rival


@on_unit_rows
def fit_gaussian(shots: Shots) -> Rival:
    """GDA with the paper's precision matrix, K ((N − 1) Σ̂ + tr(Σ̂) I)⁻¹ (T. Kubokawa and M.
    Srivastava, 2008), Σ̂ the covariance about the class means.

    The paper adds the zero-shot logits with a weight searched on a validation set; here that weight
    and a temperature have the least log-loss on left-out folds.
    """
    data, unit = shots.data, shots.unit
    fold, known, how = folds_of(data, shots.groups)
    weights, offset = gaussian(unit, data.targets)
    if fold is None:
        left = unit @ weights + offset
    else:

        def outside(kept: Tensor) -> Tensor:
            some, level = gaussian(unit[kept], data.targets[kept])
            return unit[~kept] @ some + level

        left = across_folds(outside, fold)
    return rival(LinearScorer(shots.rows, weights, offset), left, data, how, known, with_text=True)


def gaussian(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (K, C) and offset (C,) from rows (N, K) and zeros and ones (N, C).

    The inverse is applied by way of the images where they are fewer than columns. A class that has
    no image here gets logits below all others'.
    """
    count, columns = rows.shape
    counts = targets.sum(0)
    means = targets.mT @ rows / counts.clamp(min=1)[:, None]
    away = rows - targets @ means
    trace = float(away.square().sum()) / max(count - 1, 1)
    if float(away.norm()) <= ROUNDING * float(rows.norm()):
        # one image per class, or copies of one: all directions alike
        solved = DEFAULT_TEMPERATURE * means
    elif columns <= count:
        gram = away.mT @ away + trace * torch.eye(columns, dtype=rows.dtype)
        solved = columns * torch.linalg.solve(gram, means.mT).mT
    else:
        gram = away @ away.mT + trace * torch.eye(count, dtype=rows.dtype)
        inner = torch.linalg.solve(gram, away @ means.mT).mT
        solved = columns * (means - inner @ away) / trace
    priors = counts / count
    offset = priors.clamp(min=1e-12).log() - 0.5 * (solved * means).sum(1)
    return solved.mT, torch.where(counts > 0, offset, offset.min() - 1e3)
