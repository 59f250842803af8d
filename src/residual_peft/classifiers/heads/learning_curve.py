"""How much better more images would make it, from fits on fewer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, check_same, labelling_in
from ...errors import ResiDualError

FRACTIONS = (0.125, 0.25, 0.5)
DRAWS = 5
FEWEST_IMAGES = 40  # below, a power law through the errors of even fewer images says nothing
_EXPONENT, _SPREAD = 0.7, 0.4
"""A power law's exponent until there is evidence: errors fall as n^-0.5 to n^-1 as a rule."""


@dataclass(frozen=True)
class LearningCurve:
    """error(n) = floor + height (n / N)^−exponent."""

    images: Tensor  # how many each point was fitted on (S,); the last is all N
    accuracy: Tensor  # of images that were not fitted on (S,)
    floor: float  # the error that no number of images takes away
    height: float  # the error at N above it
    exponent: float  # how fast it falls

    def at(self, images: float) -> float:
        """Accuracy to expect with so many training images, classes as they are."""
        share = images / float(self.images[-1])
        return 1 - min(1.0, self.floor + self.height * share**-self.exponent)

    def gain(self, more: float) -> float:
        """Points of accuracy (a share of 1) that so many more images would bring."""
        total = float(self.images[-1])
        return self.at(total + more) - self.at(total)


def learning_curve(
    accuracy_of: Callable[[Tensor, Tensor], float],
    left_out_accuracy: float,
    labels: Tensor,
    class_count: int,
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = DRAWS,
) -> LearningCurve:
    """Fit on drawn shares of the images, tell the others, and lay a power law through the errors.

    The last point are all images, told left out. The law is that of the greatest posterior: errors
    are binomial, and the exponent is about .7 until they say otherwise. For one label per image, of
    40 images or more.

    Args:
        accuracy_of: rows to fit on (n,) and rows to tell (m,) -> the share told right.
        left_out_accuracy: of the fit on all N images.
        fractions: of every class's images, with one at least; increasing.
        draws: of each fraction, with fixed seeds.
    """
    check_same(ONE_LABEL, labelling_in(labels), "a learning curve counts images that are right")
    if len(labels) < FEWEST_IMAGES:
        raise ResiDualError(
            f"wanted {FEWEST_IMAGES} images or more for a learning curve, got {len(labels)}."
        )
    points: dict[int, list[float]] = {}
    for fraction in fractions:
        for draw in range(draws):
            inside = _some(labels, class_count, fraction, draw)
            if not 0 < len(inside) < len(labels):
                continue
            outside = torch.ones(len(labels), dtype=torch.bool)
            outside[inside] = False
            rows = outside.nonzero().flatten()
            right = accuracy_of(inside, rows) * len(rows)
            sums = points.setdefault(len(inside), [0.0, 0.0])
            sums[0], sums[1] = sums[0] + right, sums[1] + len(rows)
    points[len(labels)] = [left_out_accuracy * len(labels), float(len(labels))]
    sizes = sorted(points)
    images = torch.tensor(sizes, dtype=torch.float64)
    counts = torch.tensor([points[size] for size in sizes], dtype=torch.float64)
    law = _law(images, counts[:, 0], counts[:, 1])
    return LearningCurve(images, counts[:, 0] / counts[:, 1], *law)


def _some(labels: Tensor, class_count: int, fraction: float, draw: int) -> Tensor:
    """Rows of so large a share of every class's images, one at least."""
    generator = torch.Generator().manual_seed(draw)
    order = torch.randperm(len(labels), generator=generator)
    wanted = (ONE_LABEL.counts(labels, class_count) * fraction).round().clamp(min=1)
    return torch.cat([order[labels[order] == k][: int(wanted[k])] for k in range(class_count)])


def _law(images: Tensor, right: Tensor, scored: Tensor) -> tuple[float, float, float]:
    """Floor, height and exponent of the greatest posterior."""
    import numpy as np
    from scipy.optimize import minimize

    share = (images / images[-1]).numpy()
    # draws of one data set overlap: what they tell is worth no more than the images there are
    worth = torch.minimum(scored, images[-1]).numpy()
    wrong = (1 - right / scored).numpy()

    def negative(theta: "np.ndarray") -> float:
        floor, height, exponent = np.exp(theta)
        error = np.clip(floor + height * share**-exponent, 1e-6, 1 - 1e-6)
        likelihood = worth * (wrong * np.log(error) + (1 - wrong) * np.log1p(-error))
        prior = ((exponent - _EXPONENT) / _SPREAD) ** 2 / 2 + floor / max(wrong[-1], 1e-3)
        return float(-likelihood.sum() + prior)

    level = max(float(wrong[-1]), 0.5 / float(images[-1]))
    starts = [np.log([level * part, level * (1 - part), 0.7]) for part in (0.01, 0.3, 0.8)]
    options = {"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-10}
    found = [minimize(negative, start, method="Nelder-Mead", options=options) for start in starts]
    best = min(found, key=lambda result: result.fun)
    floor, height, exponent = np.exp(best.x).tolist()
    return floor, height, exponent
