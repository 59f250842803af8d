"""Does a gain map make sense: gains against the variance that a known attribute explains."""

from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..errors import ResiDualError

_ROUNDING = 1e-14  # of a mean in float64, as a share of its terms


def variance_explained(coordinates: Tensor, labels: Tensor) -> Tensor:
    """The share of each component's variance that lies between the values of an attribute, (K,).

    ε² = 1 − (1 − η²)(N − 1)/(N − V) for V values, with η² the sum of squares between their means
    over the whole (Kelley 1935): 0 on average where the attribute means nothing, 1 where it says
    all. Components without variance get 0. Of coordinates (N, K), images whose label (N,) is
    negative, to which the attribute does not apply, are left out.

    Raises:
        ResiDualError: not one value per image, fewer than two values, or no more images than
            values.
    """
    if labels.shape != (len(coordinates),):
        raise ResiDualError(
            f"wanted one value of an attribute for each of {len(coordinates)} images, got labels "
            f"of shape {tuple(labels.shape)}; of several labels per image take one class's column, "
            "labels[:, number]."
        )
    known = labels >= 0
    values, place = labels[known].unique(return_inverse=True)
    c = coordinates[known].double()
    count, kinds = len(c), len(values)
    if kinds < 2 or count <= kinds:
        raise ResiDualError(
            f"wanted at least two values of an attribute and more images than values, got {kinds} "
            f"values on {count} images."
        )
    # what is left of a constant is the rounding of its mean, which all values have alike
    floor = count * (_ROUNDING * c.abs().amax(0)).square()
    c = c - c.mean(0)
    sums = c.new_zeros(kinds, c.shape[1]).index_add(0, place, c)
    sizes = torch.bincount(place, minlength=kinds).double()
    between = (sums.square() / sizes[:, None]).sum(0)
    whole = c.square().sum(0)
    ratio = between / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    adjusted = 1 - (1 - ratio) * (count - 1) / (count - kinds)
    return torch.where(whole > floor, adjusted, torch.zeros_like(whole))


@dataclass(frozen=True)
class GainSense:
    """Whether an adapter amplifies what varies with its attribute.

    Attributes:
        correlation: Spearman's, of the gains with the share of variance explained.
        p_value: of no correlation.
        amplified: mean share explained over the tenth of the components with the largest gains.
        silenced: over the tenth with the smallest gains.
        all: over all components.
        components: how many there are.
    """

    correlation: float
    p_value: float
    amplified: float
    silenced: float
    all: float
    components: int


def gain_sense(gains: Tensor, explained: Tensor, variance: Tensor | None = None) -> GainSense:
    """Compare gains (K,) with the share of variance that an attribute explains (K,).

    Args:
        gains: of the components.
        explained: `variance_explained` of their coordinates.
        variance: (K,); with it, means are weighted by variance, and components whose share of the
            whole is below 1e-4 are left out of all numbers: a gain on next to nothing stays
            wherever the ridge holds it.

    Raises:
        ResiDualError: sizes differ, or fewer than ten components are left.
    """
    if gains.shape != explained.shape or (variance is not None and variance.shape != gains.shape):
        raise ResiDualError(
            f"wanted a share per gain, got {tuple(gains.shape)} gains and "
            f"{tuple(explained.shape)} shares."
        )
    weights = torch.ones_like(explained) if variance is None else variance
    gains, explained, weights = (t.detach().double().cpu() for t in (gains, explained, weights))
    kept = weights > (0.0 if variance is None else 1e-4 * float(weights.sum()))
    gains, explained, weights = gains[kept], explained[kept], weights[kept]
    if len(gains) < 10:
        raise ResiDualError(f"wanted at least ten components to compare, got {len(gains)}.")
    order = gains.argsort(descending=True, stable=True)
    tenth = max(1, len(gains) // 10)

    def mean(index: Tensor) -> float:
        return float((explained[index] * weights[index]).sum() / weights[index].sum())

    rank = spearmanr(gains.numpy(), explained.numpy())
    return GainSense(
        correlation=float(rank.statistic),
        p_value=float(rank.pvalue),
        amplified=mean(order[:tenth]),
        silenced=mean(order[-tenth:]),
        all=mean(order),
        components=len(gains),
    )
