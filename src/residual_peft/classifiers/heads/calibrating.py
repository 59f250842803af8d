"""Text weight and temperature by cross-entropy on left-out predictions: two numbers, by Newton."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_TEMPERATURE = 1e-3
"""Where left-out predictions say less than nothing, only the order of the classes is kept.

Of scores larger than 1 it is so much smaller.
"""
_STEPS = 60
_STEEPEST = 1e4  # of a slope: scores that part the classes for certain


@dataclass(frozen=True)
class Calibration:
    """`a z + τ s` for left-out scores s."""

    text_weight: float  # a, at least 0
    temperature: float  # τ
    loss: float  # mean log-loss there, weighted as the images are


def calibrate(
    scores: Tensor, labels: Tensor, weights: Tensor, zero_shot: Tensor | None = None
) -> Calibration:
    """Fit a and τ, both convex together, to left-out scores (N, C), labels (N,) and weights (N,).

    One image's worth of uniform labels is added, so that τ is finite where every image is told
    right (in the spirit of Platt's targets, 1999). Without z (N, C), a is 0.
    """
    inputs = [scores] if zero_shot is None else [scores, zero_shot]
    found = _newton(torch.stack(inputs), labels, weights)
    temperature, text = float(found[0]), float(found[1]) if zero_shot is not None else 0.0
    if zero_shot is not None and text < 0:
        text = 0.0
        temperature = float(_newton(scores.unsqueeze(0), labels, weights)[0])
    size = float((scores - scores.mean(1, keepdim=True)).square().mean().sqrt())
    least = LEAST_TEMPERATURE / max(1.0, size)
    if temperature < least:
        temperature = least
        if zero_shot is not None:
            fixed = temperature * scores
            text = max(0.0, float(_newton(zero_shot.unsqueeze(0), labels, weights, fixed)[0]))
    logits = temperature * scores
    if zero_shot is not None:
        logits = logits + text * zero_shot
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return Calibration(text, temperature, float((weights @ losses) / weights.sum()))


def _newton(inputs: Tensor, labels: Tensor, weights: Tensor, fixed: Tensor | None = None) -> Tensor:
    """Coefficients (J,) of inputs (J, N, C) of least cross-entropy, beside fixed logits."""
    weights = weights / weights.sum()
    uniform = 1 / len(labels)
    inputs = inputs - inputs.mean(2, keepdim=True)  # softmax does not see it
    sizes = inputs.square().mean((1, 2)).sqrt()
    sizes = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    inputs = inputs / sizes[:, None, None]
    fixed = torch.zeros_like(inputs[0]) if fixed is None else fixed
    own = inputs.gather(2, labels.expand(len(inputs), -1).unsqueeze(2)).squeeze(2) @ weights

    def loss_of(beta: Tensor) -> tuple[float, Tensor]:
        logits = fixed + torch.einsum("j,jnc->nc", beta, inputs)
        log_p = logits.log_softmax(1)
        true = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
        return float(-(weights @ (true + uniform * log_p.mean(1)))), log_p.exp()

    beta = torch.zeros(len(inputs), dtype=inputs.dtype)
    loss, p = loss_of(beta)
    for _ in range(_STEPS):
        expected = torch.einsum("jnc,nc->jn", inputs, p)
        # the uniform labels' own mean of the inputs is 0
        gradient = (1 + uniform) * (expected @ weights) - own
        second = torch.einsum("inc,jnc,nc,n->ij", inputs, inputs, p, weights)
        second -= (expected * weights) @ expected.mT
        second = (1 + uniform) * second + 1e-12 * torch.eye(len(beta), dtype=beta.dtype)
        step = torch.linalg.solve(second, gradient)
        slope, scale = float(gradient @ step), 1.0
        if slope < 1e-14:
            break
        while True:
            new_loss, new_p = loss_of(beta - scale * step)
            if new_loss <= loss - 1e-4 * scale * slope or scale < 1e-8:
                break
            scale /= 2
        if scale < 1e-8:
            break
        beta, loss, p = beta - scale * step, new_loss, new_p
    return beta / sizes


def platt(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One slope and one bias per class for several labels: p = σ(slope s + bias).

    Platt's targets (1999), (N₊ + 1) / (N₊ + 2) for an image of the class and 1 / (N₋ + 2) for
    another, keep the slope finite where the scores part the two. Of left-out scores and zeros and
    ones (N, C): slopes, at least 0, and biases, (C,) each.
    """
    inside = targets.sum(0)
    outside = len(targets) - inside
    soft = torch.where(targets > 0, (inside + 1) / (inside + 2), 1 / (outside + 2))
    centre = scores.mean(0)
    spread = scores.std(0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    x = (scores - centre) / spread
    prior = soft.mean(0)
    slope = torch.zeros_like(centre)
    bias = torch.logit(prior)

    def loss_of(slope: Tensor, bias: Tensor) -> Tensor:
        logits = slope * x + bias
        return functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(0)

    loss = loss_of(slope, bias)
    for _ in range(_STEPS):
        p = torch.sigmoid(slope * x + bias)
        error, bent = p - soft, p * (1 - p)
        g1, g0 = (error * x).mean(0), error.mean(0)
        h11, h01, h00 = (bent * x * x).mean(0) + 1e-12, (bent * x).mean(0), bent.mean(0) + 1e-12
        determinant = h11 * h00 - h01 * h01
        step1 = (h00 * g1 - h01 * g0) / determinant
        step0 = (h11 * g0 - h01 * g1) / determinant
        scale = torch.ones_like(loss)
        for _ in range(30):  # each class halves its own step
            new_loss = loss_of(slope - scale * step1, bias - scale * step0)
            worse = ~(new_loss <= loss + 1e-15)
            if not worse.any():
                break
            scale = torch.where(worse, scale / 2, scale)
        scale = torch.where(worse, torch.zeros_like(scale), scale)
        slope, bias = slope - scale * step1, bias - scale * step0
        gained = loss - loss_of(slope, bias)
        loss = loss - gained
        if float(gained.max()) < 1e-14:
            break
    negative = slope < 0
    slope = torch.where(negative, torch.zeros_like(slope), slope).clamp_max(_STEEPEST)
    bias = torch.where(negative, torch.logit(prior), bias)
    return slope / spread, bias - slope * centre / spread
