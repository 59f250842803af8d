"""How much of a task some of the heads carry: accuracy when only the chosen ones are summed.

Rankings are made on validation images, curves on test images. The paper's setting is the default:
only the chosen heads are summed, and all else (other heads, embed, MLPs, Pβ) is zero; `subsets`
says what the other settings sum. The lines that curves are held against are all candidates (H), the
whole model (B) and the coarse optimum (O).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ResiDualError
from ..towers.units import Unit
from .coarse import CoarseOptimum
from .contributions import Contributions
from .curves import DEFAULT_BUDGETS, SelectionCurve, selection_curve
from .rankings import Method, Ranking, random_rankings, rank_units
from .subsets import Ablation, Others, Stand, accuracy_of, correct_whole, correct_with

DEFAULT_METHODS: tuple[Method, ...] = ("supervised", "unsupervised", "unsupervised_given_task")


@dataclass(frozen=True)
class ReferenceLine:
    """What curves are held against: H, B or O.

    Attributes:
        letter: "H" all candidates, "B" the whole model, "O" the coarse optimum.
        accuracy: of the test images.
        low: of Wilson's 95 % interval.
        high: of the same.
    """

    letter: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class SelectionStudy:
    """All curves and lines of one task.

    Attributes:
        rankings: of `DEFAULT_METHODS`, or those asked for.
        curves: one per ranking, and the random one.
        lines: H, B, and O where an optimum was given.
    """

    rankings: tuple[Ranking, ...]
    curves: tuple[SelectionCurve, ...]
    lines: tuple[ReferenceLine, ...]

    def curve(self, method: str) -> SelectionCurve:
        """The curve of a method, by its name or letter."""
        for curve in self.curves:
            if method in (curve.method, curve.letter):
                return curve
        have = ", ".join(curve.method for curve in self.curves)
        raise ResiDualError(f"there is no curve of {method!r}; there are those of {have}.")

    def line(self, letter: str) -> ReferenceLine:
        """H, B or O."""
        for line in self.lines:
            if line.letter == letter:
                return line
        have = ", ".join(line.letter for line in self.lines)
        raise ResiDualError(f"there is no line {letter!r}, there are {have}; O needs optimum=.")

    def rows(self) -> list[dict[str, Any]]:
        """One row per point of every curve; those of a ranking have its `margin` over R."""
        found = []
        for curve in self.curves:
            margins = curve.margin_over(self.curve("random"))
            for row, margin in zip(curve.rows(), margins, strict=True):
                own = {
                    "margin": margin.difference,
                    "margin_low": margin.low,
                    "margin_high": margin.high,
                }
                found.append(row if curve.method == "random" else row | own)
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `rankings`, `rows` and `lines`."""
        return {
            "rankings": [ranking.as_dict() for ranking in self.rankings],
            "rows": self.rows(),
            "lines": [asdict(line) for line in self.lines],
        }


def compare_selections(
    validation: Contributions,
    test: Contributions,
    class_embeddings: Tensor,
    *,
    methods: Sequence[Method] = DEFAULT_METHODS,
    units: Iterable[Unit | str] | None = ("head",),
    budgets: Sequence[int | float] = DEFAULT_BUDGETS,
    ablation: Ablation = "zero",
    others: Others = "ablate",
    draws: int = 10,
    seed: int = 0,
    optimum: CoarseOptimum | None = None,
    block: int | None = None,
) -> SelectionStudy:
    """Rank units on validation images and score every choice on test images, beside random ones.

    Args:
        validation: labelled contributions that units are chosen on; their means stand in, too.
        test: labelled contributions that are scored.
        class_embeddings: (C, d).
        methods: of `rank_units`.
        units: which are candidates: kinds, names or `Unit`s; None for all.
        budgets: as for `selection_curve`.
        ablation: as for `selection_curve`, and for "supervised", which ranks units with it.
        others: as for `selection_curve`.
        draws: of the random choice.
        seed: of those.
        optimum: of `coarse_optimum`, for the line O.
        block: images at a time; None for as many as fit in 256 MB.

    Raises:
        ResiDualError: as `rank_units` and `selection_curve`.
    """
    candidates = validation.select(units)
    rankings = tuple(
        rank_units(candidates, class_embeddings, method, units=None, ablation=ablation, block=block)
        for method in methods
    )
    choices: list[Any] = [*rankings, random_rankings(candidates.units, draws, seed)]
    setting: dict[str, Any] = {"ablation": ablation, "others": others, "reference": validation}
    curves = tuple(
        selection_curve(choice, test, class_embeddings, budgets, block=block, **setting)
        for choice in choices
    )
    everything = torch.ones(1, len(candidates.units), dtype=torch.bool)
    pool = test.select(candidates.units)
    stand = Stand(pool, class_embeddings, ablation, others, validation)
    right = {
        "H": correct_with(pool, class_embeddings, everything, stand, block)[0],
        "B": correct_whole(pool, class_embeddings, block),
    }
    if optimum is not None:
        right["O"] = optimum.correct(test, class_embeddings)
    lines = tuple(ReferenceLine(letter, *accuracy_of(row)) for letter, row in right.items())
    return SelectionStudy(rankings, curves, lines)
