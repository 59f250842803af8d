"""ProKeR (Y. Bendou et al., CVPR 2025): kernel ridge regression of what zero-shot gets wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .finishing import finish, mean_loss, text_alone
from .head import text_of
from .images import Images
from .left_out import Leaving, leaving_of
from .preparing import UnitRows
from .rival import Rival, Shots, on_unit_rows, rival

SHARPNESSES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # β
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # λ
DEFAULT_SHARPNESS, DEFAULT_STRENGTH = 1.0, 0.1


@dataclass(frozen=True)
class KernelRidge:
    """p(x) + k(x, S) (K + λ I)⁻¹ (Y − p(S)), k(x, y) = exp(−β ‖x − y‖²), p = softmax(a z)."""

    rows: UnitRows  # how features are prepared
    images: Tensor  # S, unit-norm rows (N, K)
    weights: Tensor  # (K + λ I)⁻¹ (Y − p(S)) (N, C)
    sharpness: float  # β
    prior: Tensor  # what p is where there is no text: the classes' shares (1, C)
    text_weight: float  # a, which makes zero-shot as sure as it may be; 0 without text

    @property
    def parameter_count(self) -> int:
        """N (K + C): images and weights."""
        return self.images.numel() + self.weights.numel()

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Regressed indicators (M, C), about 0 and 1; a temperature makes logits of them."""
        kernel = (2 * self.sharpness * (self.rows(features) @ self.images.mT - 1)).exp()
        found = kernel @ self.weights
        if not self.text_weight:
            return found + self.prior
        return found + (self.text_weight * text_of(found, zero_shot)).softmax(1)


@on_unit_rows
def fit_proker(shots: Shots) -> Rival:
    """ProKeR, β and λ chosen by the log-loss of left-out images, which it has in closed form.

    The function nearest to the zero-shot one, in the kernel's norm, that fits the images. p is a
    softmax here, of logits that the images calibrated first, to be on one scale with indicators.
    The residuals of the fit without a part B are ((A⁻¹)_BB)⁻¹ (A⁻¹ R)_B with A = K + λ I and
    R = Y − p(S).
    """
    data, unit = shots.data, shots.unit
    leaving = leaving_of(data.labels, data.targets.shape[1], shots.groups)
    prior = data.targets.mean(0, keepdim=True)
    text_weight = text_alone(data)
    base = prior
    if text_weight:
        base = (text_weight * text_of(data.targets, data.zero_shot)).softmax(1)
    residual = data.targets - base
    cosines = unit @ unit.mT
    best, left = _choose(cosines, residual, data, leaving)
    kernel = (2 * best[0] * (cosines - 1)).exp()
    weights = torch.linalg.solve(kernel + best[1] * torch.eye(len(unit)), residual)
    scorer = KernelRidge(shots.rows, unit, weights, best[0], prior, text_weight)
    chosen = {"sharpness": best[0], "strength": best[1]}
    return rival(scorer, left, data, leaving.how, leaving.known, with_text=False, chosen=chosen)


def _choose(
    cosines: Tensor, residual: Tensor, data: Images, leaving: Leaving
) -> tuple[tuple[float, float], Tensor]:
    """(β, λ) and the left-out scores (N, C) there."""
    best, least, left = (DEFAULT_SHARPNESS, DEFAULT_STRENGTH), float("inf"), None
    for sharpness in SHARPNESSES:
        kernel = (2 * sharpness * (cosines - 1)).exp()
        values, vectors = torch.linalg.eigh(kernel)
        inner = vectors.mT @ residual
        for strength in STRENGTHS:
            shrunk = 1 / (values.clamp(min=0) + strength)
            scores = data.targets - _without(vectors, shrunk, inner, strength, leaving)
            if leaving.known.any():
                final = finish(scores, data, leaving.how, leaving.known, with_text=False)[2]
                loss = mean_loss(final.logits, data, leaving.known)
                if loss < least:
                    best, least, left = (sharpness, strength), loss, scores
            elif (sharpness, strength) == best:
                left = scores
    assert left is not None
    return best, left


def _without(
    vectors: Tensor, shrunk: Tensor, inner: Tensor, strength: float, leaving: Leaving
) -> Tensor:
    """Residuals (N, C) of each image by the fit without its part; of the whole fit with "none"."""
    solved = vectors @ (shrunk[:, None] * inner)  # A⁻¹ R
    if leaving.how == "none":
        return strength * solved  # R − K A⁻¹ R
    if leaving.how == "one":
        return solved / (vectors.square() @ shrunk)[:, None]
    found = torch.empty_like(solved)
    for part in leaving.parts:
        own = (vectors[part] * shrunk) @ vectors[part].mT
        found[part] = torch.linalg.solve(own, solved[part])
    return found
