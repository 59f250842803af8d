"""A run record's gains -> what its report says of units and components."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ..analysis.describing import Words
from ..classifiers.figures import brief, gains_by_place, mean_gain
from ..data.metrics import Array
from ..towers.units import Unit
from .run_record import GainRecord, RunRecord


@dataclass(frozen=True)
class UnitView:
    """One unit's gains and what they did.

    Attributes:
        unit: which.
        gains: λ (k,).
        share: of the change of the logits, by component (k,).
        toward_label: (k,).
        eigenvalues: (k,), or None.
    """

    unit: Unit
    gains: Array
    share: Array
    toward_label: Array
    eigenvalues: Array | None

    @property
    def mean_gain(self) -> float:
        """Over its components, weighted by their variance where that is known."""
        return mean_gain(self.gains, self.eigenvalues)


@dataclass(frozen=True)
class ComponentView:
    """One component: its gain and what it did.

    Attributes:
        unit: whose.
        component: its number, 0 the one with the most variance; None where a unit has one gain.
        gain: λ.
        share: of the change of the logits.
        toward_label: mean change of the label's logit.
        words: what it writes, where somebody looked for words.
    """

    unit: Unit
    component: int | None
    gain: float
    share: float
    toward_label: float
    words: Words | None


@dataclass(frozen=True)
class UnitMap:
    """A number per head and MLP, laid out by layer.

    Attributes:
        values: (layers, columns), NaN where nothing is adapted.
        columns: the columns' names.
        reach: the largest distance of a value from the middle of the scale.
        scale: what the numbers of its cells are multiplied with.
        digits: after their points.
    """

    values: Array
    columns: list[str]
    reach: float
    scale: float = 1.0
    digits: int = 2

    def text(self, value: float | None) -> str:
        """What stands in a cell."""
        return "" if value is None else brief(self.scale * value, self.digits)

    @property
    def longest(self) -> int:
        """Characters of the longest cell, so that the page can give it its room."""
        return max(len(self.text(v)) for _, row in self.layers for v in row)

    @property
    def layers(self) -> list[tuple[int, list[float | None]]]:
        """(layer, values) with None for NaN, without layers where nothing is adapted."""
        rows = [[None if np.isnan(v) else float(v) for v in row] for row in self.values]
        return [(i, row) for i, row in enumerate(rows) if any(v is not None for v in row)]


def unit_views(gains: GainRecord) -> list[UnitView]:
    """What is known of each unit, in the order of the tower."""
    columns = {name: tensor.double().numpy() for name, tensor in gains.tensors().items()}
    ends = list(accumulate(gains.counts))
    return [
        UnitView(
            unit,
            gains=columns["gains"][end - count : end],
            share=columns["share"][end - count : end],
            toward_label=columns["toward_label"][end - count : end],
            eigenvalues=columns["eigenvalues"][end - count : end]
            if "eigenvalues" in columns
            else None,
        )
        for unit, count, end in zip(gains.units, gains.counts, ends, strict=True)
    ]


def gain_map(views: list[UnitView]) -> UnitMap | None:
    """The mean gain of every head and MLP; None where no unit has a layer."""
    return _map({view.unit: view.mean_gain for view in views}, 1.0)


def share_map(views: list[UnitView]) -> UnitMap | None:
    """The share of the change of the logits that every head and MLP accounts for."""
    shares = {view.unit: float(view.share.sum()) for view in views}
    return _map(shares, 0.0, scale=100.0, digits=1)


def strongest(record: RunRecord, count: int = 12) -> list[ComponentView]:
    """The components that account for most of the change, whatever their sign."""
    assert record.gains is not None
    words = {(item.unit, item.component): item for item in record.words}
    found = []
    for view in unit_views(record.gains):
        whole = view.eigenvalues is None and len(view.gains) == 1
        for index, gain in enumerate(view.gains):
            number = None if whole else index
            # words of the unit as a whole are better than none
            known = words.get((view.unit, number)) or words.get((view.unit, None))
            share, toward = float(view.share[index]), float(view.toward_label[index])
            found.append(ComponentView(view.unit, number, float(gain), share, toward, known))
    return sorted(found, key=lambda item: -abs(item.share))[:count]


def widest_spectra(views: list[UnitView], count: int = 4) -> list[UnitView]:
    """The units that account for most of the change, of those with a spectrum to show."""
    known = [v for v in views if v.eigenvalues is not None and len(v.gains) > 1]
    known = [v for v in known if v.eigenvalues is not None and v.eigenvalues.max() > 0]
    return sorted(known, key=lambda view: -abs(float(view.share.sum())))[:count]


def _map(values: dict[Unit, float], middle: float, **cells: Any) -> UnitMap | None:
    placed = {unit: [value] for unit, value in values.items() if unit.layer is not None}
    if not placed:
        return None
    grid, columns = gains_by_place(placed)
    return UnitMap(grid, columns, max(float(np.nanmax(np.abs(grid - middle))), 1e-6), **cells)
