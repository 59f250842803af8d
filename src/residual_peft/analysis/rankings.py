"""Units in the order in which they are chosen for a task, and what choices for several share.

| method | letter | by | needs |
|---|---|---|---|
| `supervised` | S | accuracy of the unit alone | labelled images |
| `unsupervised` | U | mean Pearson correlation with the readout, over its own basis | images |
| `unsupervised_given_task` | U\\|T | the same over a basis of the class embeddings | class names |
| `random` | R | a draw | nothing |

Source: the paper's unit selection (`method.md`, section 6).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from scipy.stats import hypergeom
from torch import Tensor

from ..errors import ResiDualError
from ..hub.files import plain_of
from ..towers.units import Unit
from .contributions import Contributions
from .subsets import Ablation, Stand, check_classes, score_blocks

Method = Literal["supervised", "unsupervised", "unsupervised_given_task", "random"]

LETTERS: dict[str, str] = {
    "supervised": "S",
    "unsupervised": "U",
    "unsupervised_given_task": "U|T",
    "random": "R",
}
"""Method -> the paper's letter."""

# shares of variance below which a direction holds rounding only: of readouts, float32, and of
# units, whose frames are float64
_READOUT_FLOOR, _UNIT_FLOOR = 1e-12, 1e-20


@dataclass(frozen=True)
class Ranking:
    """Units, best first.

    Attributes:
        method: how they were ranked, one of `LETTERS`.
        units: U units.
        scores: what each was ranked by, decreasing; None for a random draw.
    """

    method: str
    units: tuple[Unit, ...]
    scores: tuple[float, ...] | None = None

    @property
    def letter(self) -> str:
        """The paper's letter for the method."""
        return LETTERS[self.method]

    def top(self, budget: int | float) -> tuple[Unit, ...]:
        """The best units: so many (int), or such a share of them (float); see `unit_count`."""
        return self.units[: unit_count(budget, len(self.units))]

    def rows(self) -> list[dict[str, Any]]:
        """One row per unit: `rank`, from 1, `unit` and `score`."""
        scores = self.scores or (None,) * len(self.units)
        pairs = zip(self.units, scores, strict=True)
        return [
            {"rank": rank, "unit": str(unit), "score": score}
            for rank, (unit, score) in enumerate(pairs, 1)
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `method`, `letter`, `rows`."""
        return {"method": self.method, "letter": self.letter, "rows": self.rows()}


def unit_count(budget: int | float, total: int) -> int:
    """How many of `total` units a budget is: an int as it is, a float as a share, at least one.

    Shares are rounded to the nearest unit: of 48 heads 1 % is one, 5 % two, 10 % five.

    >>> [unit_count(budget, 48) for budget in (1, 0.01, 0.05, 0.1, 0.25, 1.0)]
    [1, 1, 2, 5, 12, 48]

    Raises:
        ResiDualError: an int outside 1..total, or a share outside (0, 1].
    """
    if isinstance(budget, int) and not isinstance(budget, bool) and 1 <= budget <= total:
        return budget
    if isinstance(budget, float) and 0 < budget <= 1:
        return max(1, round(budget * total))
    raise ResiDualError(
        f"wanted a number of units from 1 to {total} (int) or a share of them above 0 and up to "
        f"1.0 (float), got {budget!r}."
    )


def rank_units(
    contributions: Contributions,
    class_embeddings: Tensor | None = None,
    method: Method = "supervised",
    *,
    units: Iterable[Unit | str] | None = ("head",),
    ablation: Ablation = "zero",
    block: int | None = None,
) -> Ranking:
    """Rank units by what they do on some images: validation images, or those of the basis.

    Equal scores keep the order of the tower.

    * supervised: accuracy of argmax_c x_u · w_c, the unit alone; with mean ablation all else at its
      mean over these images.
    * unsupervised: mean over j of corr(x_u · e_j, y · e_j), with e_j the principal axes of the
      centred readouts, an orthonormal basis of them. All axes count alike.
    * unsupervised_given_task: the same, with e_j the columns of Q in W_textᵀ = Q R. Q depends on
      the order of the classes; columns of embeddings that are linear combinations of earlier ones
      are left out.

    Correlations are centred; one with no variance on either side is 0.

    Args:
        contributions: to the images to choose on; labelled, for "supervised".
        class_embeddings: W_text (C, d); not needed by "unsupervised".
        method: "supervised", "unsupervised" or "unsupervised_given_task"; `random_rankings` draws.
        units: which are candidates: kinds, names or `Unit`s; None for all.
        ablation: of the others, for "supervised".
        block: images at a time, for "supervised"; None for as many as fit in 256 MB.

    Raises:
        ResiDualError: an unknown method, no class embeddings or labels where they are needed.
    """
    candidates = contributions.select(units)
    if method not in ("supervised", "unsupervised", "unsupervised_given_task"):
        raise ResiDualError(
            "wanted method 'supervised', 'unsupervised' or 'unsupervised_given_task', got "
            f"{method!r}; random_rankings draws at random."
        )
    if method == "unsupervised":
        centred = contributions.readout.double() - contributions.readout.double().mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        axes = vectors[:, values > _READOUT_FLOOR * values.sum()].T  # what holds more than rounding
        scores = _correlations(candidates, axes)
    elif class_embeddings is None:
        raise ResiDualError(f"wanted class_embeddings (C, d) to rank by {method!r}, got none.")
    else:
        check_classes(contributions, class_embeddings)
        if method == "supervised":
            scores = _alone(candidates, class_embeddings, ablation, block)
        else:
            scores = _correlations(candidates, _class_axes(class_embeddings))
    order = scores.argsort(descending=True, stable=True).tolist()
    return Ranking(
        method,
        tuple(candidates.units[index] for index in order),
        tuple(float(scores[index]) for index in order),
    )


def random_rankings(units: Sequence[Unit], draws: int = 10, seed: int = 0) -> tuple[Ranking, ...]:
    """Rank units at random, so many times, with one seed; their order does not matter.

    Raises:
        ResiDualError: no draws or no units.
    """
    if draws < 1 or not units:
        raise ResiDualError(
            f"wanted at least one draw of at least one unit, got draws={draws} and "
            f"{len(units)} units."
        )
    generator = torch.Generator().manual_seed(seed)
    ordered = sorted(units, key=str)
    orders = [torch.randperm(len(units), generator=generator).tolist() for _ in range(draws)]
    return tuple(Ranking("random", tuple(ordered[i] for i in order)) for order in orders)


@dataclass(frozen=True)
class OverlapMatrix:
    """Jaccard overlaps |A ∩ B| / |A ∪ B| of sets of units.

    Attributes:
        names: T names, of tasks, for instance.
        values: (T, T), symmetric, ones on the diagonal.
        chance: (T, T) what two random sets of these sizes share on average; None where the number
            of candidates was not given.
    """

    names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    chance: tuple[tuple[float, ...], ...] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row per pair of names: `first`, `second`, `jaccard` and `chance`."""
        return [
            {
                "first": self.names[i],
                "second": self.names[j],
                "jaccard": self.values[i][j],
                "chance": None if self.chance is None else self.chance[i][j],
            }
            for i, j in combinations(range(len(self.names)), 2)
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `names`, `values`, `chance`."""
        found: dict[str, Any] = plain_of(self)
        return found


def overlap(chosen: Mapping[str, Sequence[Unit]], total: int | None = None) -> OverlapMatrix:
    """Jaccard overlap of the units chosen for several tasks, such as `ranking.top(0.1)` of each.

    With `total`, how many candidates there were, `chance` says what random choices share.

    Raises:
        ResiDualError: a set without units, or with more than there are.
    """
    sets = [frozenset(units) for units in chosen.values()]
    for name, units in zip(chosen, sets, strict=True):
        if not units or (total is not None and len(units) > total):
            raise ResiDualError(
                f"wanted at least one unit{'' if total is None else f' and at most {total}'} for "
                f"'{name}' to compare, got {len(units)}."
            )
    values = tuple(tuple(len(a & b) / len(a | b) for b in sets) for a in sets)
    if total is None:
        return OverlapMatrix(tuple(chosen), values)

    def by_chance(first: int, second: int) -> float:
        shared = hypergeom(total, first, second)  # of two independent random sets
        return float(shared.expect(lambda k: k / (first + second - k)))

    chance = tuple(
        tuple(1.0 if i == j else by_chance(len(a), len(b)) for j, b in enumerate(sets))
        for i, a in enumerate(sets)
    )
    return OverlapMatrix(tuple(chosen), values, chance)


@torch.no_grad()
def _alone(
    contributions: Contributions, class_embeddings: Tensor, ablation: Ablation, block: int | None
) -> Tensor:
    """Accuracy of each unit alone, (U,) float64."""
    stand = Stand(contributions, class_embeddings, ablation, "ablate", contributions)
    assert stand.rest is not None
    fixed = stand.units.sum(0) - stand.units + stand.rest  # (U, C)
    right = torch.zeros(len(contributions.units), dtype=torch.long)
    for part in score_blocks(contributions, class_embeddings, block):
        right += ((part.scores + fixed).argmax(-1) == part.labels[:, None]).sum(0)
    return right.double() / len(contributions)


def _class_axes(class_embeddings: Tensor) -> Tensor:
    """Q of the class embeddings (r, d), without columns that its predecessors span."""
    columns = class_embeddings.detach().cpu().double()
    least = 1e-6 * float(columns.norm(dim=1).max())
    axes = columns[:0]
    for rest in columns:
        # not one QR of all: in place of what is spanned it has an axis that means nothing, which
        # later columns then lack
        for _ in range(2):  # once more for what rounding left
            rest = rest - (axes @ rest) @ axes
        if float(rest.norm()) > least:
            axes = torch.cat([axes, rest[None] / rest.norm()])
    return axes


def _correlations(contributions: Contributions, axes: Tensor) -> Tensor:
    """Mean Pearson correlation of each unit with the readout along axes (r, d): (U,) float64."""
    readout = contributions.readout.double()
    readout = readout - readout.mean(0)
    along = readout @ axes.T  # (N, r)
    power = along.square().sum(0)
    power = torch.where(power > _READOUT_FLOOR * readout.square().sum(), power, torch.inf)
    found = []
    for part in contributions:
        # from second moments in the unit's own axes: (k, r), not (N, d)
        c = part.coordinates.double()
        c = c - c.mean(0)  # of some `rows` the mean is not zero
        inside, gram = part.components @ axes.T, c.T @ c
        own = (inside * (gram @ inside)).sum(0)
        own = torch.where(own > _UNIT_FLOOR * gram.trace(), own, torch.inf)
        found.append(((inside * (c.T @ along)).sum(0) / (own * power).sqrt()).mean())
    return torch.stack(found)
