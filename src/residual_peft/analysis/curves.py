"""Accuracy by the number of units that are kept, of one ranking or of several random ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..data.metrics import difference_interval
from ..errors import ResiDualError
from ..hub.files import plain_of
from .contributions import Contributions
from .rankings import LETTERS, Ranking, unit_count
from .subsets import Ablation, Others, Stand, accuracy_of, correct_with

DEFAULT_BUDGETS: tuple[int | float, ...] = (1, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
"""The paper's: the top head, then shares of the heads."""


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with so many units.

    Attributes:
        budget: as asked for, a number (int) or a share (float).
        units: how many that is.
        accuracy: of the test images; of several draws the mean.
        low: of its 95 % interval: Wilson's, or of the mean over images and draws.
        high: of the same.
        spread: standard deviation over draws; None for a single ranking.
    """

    budget: int | float
    units: int
    accuracy: float
    low: float
    high: float
    spread: float | None


@dataclass(frozen=True)
class Margin:
    """How much better one curve is than another at a budget, on the same images.

    Attributes:
        budget: as asked for.
        units: how many units that is.
        difference: of accuracies.
        low: of its 95 % interval.
        high: of the same.
    """

    budget: int | float
    units: int
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class SelectionCurve:
    """Accuracy by the number of units that are kept.

    Attributes:
        method: how the units were ranked, one of `LETTERS`.
        ablation: "zero" or "mean".
        others: "ablate" or "keep".
        images: how many images were scored.
        points: one per budget.
        right: (draws, budgets, N) bool: which images were right, for paired differences.
    """

    method: str
    ablation: str
    others: str
    images: int
    points: tuple[CurvePoint, ...]
    right: Tensor = field(repr=False, compare=False)

    @property
    def letter(self) -> str:
        """The paper's letter for the method."""
        return LETTERS[self.method]

    def margin_over(self, other: "SelectionCurve") -> tuple[Margin, ...]:
        """How much better this one is at each budget.

        The interval is that of matched pairs where both are single rankings
        (`metrics.difference_interval`), else normal, with the variance over images and draws.

        Raises:
            ResiDualError: a curve of other budgets or images.
        """
        mine, theirs = [[(p.budget, p.units) for p in c.points] for c in (self, other)]
        if mine != theirs or self.images != other.images:
            raise ResiDualError(
                f"wanted a curve of the same {self.images} images and budgets "
                f"{[budget for budget, _ in mine]}, got one of {other.images} images and "
                f"{[budget for budget, _ in theirs]}."
            )
        found = []
        for index, point in enumerate(self.points):
            one, two = self.right[:, index], other.right[:, index]
            if len(one) == len(two) == 1:
                low, high = difference_interval(one[0], two[0])
            else:
                low, high = _interval(one, two)
            difference = point.accuracy - other.points[index].accuracy
            found.append(Margin(point.budget, point.units, difference, low, high))
        return tuple(found)

    def rows(self) -> list[dict[str, Any]]:
        """One row per point: its attributes, and `method`, `letter`, `ablation`, `others`."""
        head = {"method": self.method, "letter": self.letter}
        tail = {"ablation": self.ablation, "others": self.others}
        return [head | tail | asdict(point) for point in self.points]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `method`, `letter`, `ablation`, `others`, `images` and `points`."""
        names = ("method", "letter", "ablation", "others", "images", "points")
        return {name: plain_of(getattr(self, name)) for name in names}


def selection_curve(
    ranking: Ranking | Sequence[Ranking],
    test: Contributions,
    class_embeddings: Tensor,
    budgets: Sequence[int | float] = DEFAULT_BUDGETS,
    *,
    ablation: Ablation = "zero",
    others: Others = "ablate",
    reference: Contributions | None = None,
    block: int | None = None,
) -> SelectionCurve:
    """Accuracy when only the best units of a ranking are summed.

    Args:
        ranking: one, or several draws of the same units, whose mean and spread are taken.
        test: contributions to labelled images, not those that the ranking was made on.
        class_embeddings: (C, d).
        budgets: numbers of units (int) or shares of them (float); see `unit_count`.
        ablation: what becomes of the other ranked units: "zero" or "mean".
        others: what becomes of what no ranked unit wrote: "ablate" as those, or "keep".
        reference: contributions whose means stand in, for mean ablation: validation images.
        block: images at a time; None for as many as fit in 256 MB.

    Raises:
        ResiDualError: no ranking or rankings of different units, units that `test` lacks, budgets
            outside the units, no labels, or no reference where one is needed.
    """
    rankings = (ranking,) if isinstance(ranking, Ranking) else tuple(ranking)
    if not rankings or len({frozenset(one.units) for one in rankings}) != 1:
        raise ResiDualError(
            f"wanted one ranking, or several of the same units, got {len(rankings)} of "
            f"{sorted({len(one.units) for one in rankings})} units."
        )
    for unit in rankings[0].units:
        test[unit]  # says which one is missing
    if not budgets:
        raise ResiDualError("wanted at least one budget, got none.")
    pool = test.select(rankings[0].units)
    counts = [unit_count(budget, len(pool.units)) for budget in budgets]
    place = {unit: index for index, unit in enumerate(pool.units)}
    kept = torch.zeros(len(rankings), len(counts), len(pool.units), dtype=torch.bool)
    for draw, one in zip(kept, rankings, strict=True):
        for row, count in zip(draw, counts, strict=True):
            row[[place[unit] for unit in one.units[:count]]] = True
    stand = Stand(pool, class_embeddings, ablation, others, reference)
    right = correct_with(pool, class_embeddings, kept.flatten(0, 1), stand, block)
    right = right.unflatten(0, kept.shape[:2])
    points = [
        _point(budget, count, right[:, i])
        for i, (budget, count) in enumerate(zip(budgets, counts, strict=True))
    ]
    return SelectionCurve(rankings[0].method, ablation, others, len(test), tuple(points), right)


def _point(budget: int | float, count: int, right: Tensor) -> CurvePoint:
    """Who was right in each draw (draws, N) -> a point."""
    accuracy, low, high = accuracy_of(right)
    if len(right) == 1:
        return CurvePoint(budget, count, accuracy, low, high, None)
    low, high = _interval(right)
    spread = float(right.double().mean(1).std())
    return CurvePoint(budget, count, accuracy, max(low, 0), min(high, 1), spread)


def _interval(first: Tensor, second: Tensor | None = None) -> tuple[float, float]:
    """Normal 95 % interval of the mean of (draws, N), or of a difference of two such means.

    Images and draws both vary; the two variances are added, which counts a little twice.
    """
    per_image = first.double().mean(0)
    draws = [first] if second is None else [first, second]
    if second is not None:
        per_image = per_image - second.double().mean(0)
    variance = per_image.var() / len(per_image)
    for part in draws:
        if len(part) > 1:
            variance = variance + part.double().mean(1).var() / len(part)
    half = NormalDist().inv_cdf(0.975) * float(variance.sqrt())
    return float(per_image.mean()) - half, float(per_image.mean()) + half
