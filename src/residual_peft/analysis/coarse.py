"""The coarse optimum (the paper's O): the best that one gain per head can do.

    y' = Σ_u g_u x_u     over the heads alone; all that no head wrote is dropped

Fitted in two steps (`method.md`, section 7): un-normalised logits s · y' · W_textᵀ / mean ‖y‖, with
a ridge on g − 1, are a strictly convex problem with one optimum; from there cross-entropy of the
normalised logits s · normalize(y') · W_textᵀ, the objective that the gains are used with.
Both for a few strengths of the ridge; held-out images choose between them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from ..bases.blas import one_thread_in_scipy
from ..classifiers.zero_shot import USUAL_LOGIT_SCALE
from ..errors import ResiDualError
from ..towers.units import Unit
from .contributions import Contributions
from .subsets import score_blocks

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)
_BLOCK = 1024  # images at once
_TINY = 1e-12  # of a readout's squared length at such gains: below, its direction is rounding


@dataclass(frozen=True)
class CoarseOptimum:
    """One gain per unit.

    Attributes:
        units: U units, in the order of the tower.
        gains: (U,) float64.
        objective: "linear" or "normalized", whichever held-out images preferred.
        strength: of the ridge.
        validation_accuracy: by which the two were chosen.
        gradient_norm: of the objective at the gains: how far from its optimum they may be.
    """

    units: tuple[Unit, ...]
    gains: Tensor
    objective: str
    strength: float
    validation_accuracy: float
    gradient_norm: float

    def correct(self, test: Contributions, class_embeddings: Tensor) -> Tensor:
        """Which images are right with these gains, (N,) bool."""
        return _correct(test.select(self.units), class_embeddings, self.gains)

    def rows(self) -> list[dict[str, Any]]:
        """One row per unit: `unit` and `gain`."""
        pairs = zip(self.units, self.gains.tolist(), strict=True)
        return [{"unit": str(unit), "gain": gain} for unit, gain in pairs]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, with `rows` for the gains."""
        names = ("objective", "strength", "validation_accuracy", "gradient_norm")
        return {name: getattr(self, name) for name in names} | {"rows": self.rows()}


def coarse_optimum(
    train: Contributions,
    validation: Contributions,
    class_embeddings: Tensor,
    *,
    units: Iterable[Unit | str] | None = ("head",),
    logit_scale: float = USUAL_LOGIT_SCALE,
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = 200,
) -> CoarseOptimum:
    """Fit one gain per head on `train`; objective and ridge are chosen by accuracy on `validation`.

    Of equal accuracies the stronger ridge's is taken, and the convex objective's before the other.
    L-BFGS, from ones, each fit starting at the last. A ridge is strength / 2 · Σ (g − 1)², beside
    the mean cross-entropy. Memory: N U (U + C) numbers, 3 GB for 5,000 images, 384 heads and 10
    classes; give some `rows` where there are more images.

    Raises:
        ResiDualError: no labels, labels outside the classes, or strengths that are not positive.
    """
    if not strengths or min(strengths) <= 0:
        raise ResiDualError(
            "wanted strengths of the ridge above 0 (where gains alone can tell all classes apart "
            f"there is no optimum without), got {tuple(strengths)}."
        )
    inside, outside = train.select(units), validation.select(units)
    problem = _Problem(inside, class_embeddings, logit_scale)
    start = np.ones(len(inside.units))
    best: CoarseOptimum | None = None
    for strength in sorted(strengths, reverse=True):
        for normalized in (False, True):
            with one_thread_in_scipy():
                found = minimize(
                    problem,
                    start,
                    args=(strength, normalized),
                    jac=True,
                    method="L-BFGS-B",
                    options={"maxiter": max_iterations, "ftol": 1e-10, "gtol": 1e-5},
                ).x
            start = start if normalized else found
            gains = torch.from_numpy(found)
            right = _correct(outside, class_embeddings, gains).float().mean().item()
            if best is None or right > best.validation_accuracy:
                norm = float(np.linalg.norm(problem(found, strength, normalized)[1]))
                name = "normalized" if normalized else "linear"
                best = CoarseOptimum(inside.units, gains, name, strength, right, norm)
    assert best is not None
    return best


class _Problem:
    """Value and gradient at gains g (U,), float64, from what does not change with them.

    Per image the scores s_uc = x_u · w_c, and for ‖y'‖² = gᵀ G g the products G_uv = x_u · x_v.
    """

    def __init__(
        self, contributions: Contributions, class_embeddings: Tensor, logit_scale: float
    ) -> None:
        self.logit_scale = logit_scale
        self.mean_length = float(contributions.readout.double().norm(dim=1).mean())
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.images = len(contributions)
        for part in score_blocks(contributions, class_embeddings, _BLOCK):
            rows = contributions.rows(torch.arange(part.rows.start, part.rows.stop))
            written = torch.stack([one.full().float() for one in rows], dim=1)  # (b, U, d)
            self.parts.append((part.scores, written @ written.mT, part.labels))

    @torch.inference_mode(False)  # turns gradients on, too
    def __call__(self, gains: Any, strength: float, normalized: bool) -> tuple[float, Any]:
        free = torch.from_numpy(gains).requires_grad_()
        total = 0.0
        # beside what gains of this size make of it: gains near 0 would be a way out to equal logits
        size = self.mean_length**2 * max(float(gains @ gains) / len(gains), 1e-30)
        for scores, products, labels in self.parts:
            logits = self.logit_scale * (free @ scores.double())
            if normalized:
                square = (free * (products.double() @ free)).sum(-1, keepdim=True)
                logits = logits / square.clamp_min(_TINY * size).sqrt()
            else:
                logits = logits / self.mean_length
            loss = functional.cross_entropy(logits, labels, reduction="sum") / self.images
            loss.backward()
            total += loss.item()
        assert free.grad is not None
        from_one = gains - 1
        value = total + 0.5 * strength * float(from_one @ from_one)
        return value, free.grad.numpy() + strength * from_one


@torch.no_grad()
def _correct(contributions: Contributions, class_embeddings: Tensor, gains: Tensor) -> Tensor:
    """Which images are right at gains (U,): the argmax of Σ_u g_u x_u · w_c."""
    found = torch.empty(len(contributions), dtype=torch.bool)
    for part in score_blocks(contributions, class_embeddings):
        logits = torch.einsum("u,buc->bc", gains.float(), part.scores)
        found[part.rows] = logits.argmax(-1) == part.labels
    return found
