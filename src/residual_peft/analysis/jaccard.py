"""How much the units chosen for several tasks have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import hypergeom

from ..errors import ResiDualError
from ..towers.units import Unit


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
            for i in range(len(self.names))
            for j in range(i + 1, len(self.names))
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `names`, `values`, `chance`."""
        chance = None if self.chance is None else [list(row) for row in self.chance]
        values = [list(row) for row in self.values]
        return {"names": list(self.names), "values": values, "chance": chance}


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
    chance = None
    if total is not None:
        chance = tuple(
            tuple(1.0 if i == j else _chance(len(a), len(b), total) for j, b in enumerate(sets))
            for i, a in enumerate(sets)
        )
    return OverlapMatrix(tuple(chosen), values, chance)


def _chance(first: int, second: int, total: int) -> float:
    """Expected Jaccard overlap of two independent random sets: k shared is hypergeometric."""
    return float(hypergeom(total, first, second).expect(lambda k: k / (first + second - k)))
