"""A run record's gains or class head -> what its report says of units and components."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ..analysis import ComponentShare, Reason, movement
from ..analysis.describing import Words
from ..classifiers.figures import brief, gains_by_place, mean_gain
from ..data.metrics import Array
from ..towers.units import Unit
from .run_record import GainRecord, HeadShares, RunRecord


@dataclass(frozen=True)
class UnitView:
    """One unit's gains and what they did."""

    unit: Unit  # which
    gains: Array  # λ (k,)
    share: Array  # of the change of the logits, by component (k,)
    toward_label: Array  # (k,)
    eigenvalues: Array | None = None  # (k,), or None

    @property
    def mean_gain(self) -> float:
        """Over its components, weighted by their variance where that is known."""
        return mean_gain(self.gains, self.eigenvalues)


@dataclass(frozen=True)
class HeadComponent(ComponentShare):
    """One component, or whole unit, that a class head reads."""

    words: Words | None  # what it writes, where somebody looked for words


@dataclass(frozen=True)
class ComponentView(HeadComponent):
    """One component, or whole unit, and its gain: shares are of the change of the logits."""

    gain: float  # λ


@dataclass(frozen=True)
class ReasonView(Reason):
    """A component that speaks for or against a class."""

    # what images of the class have of the component, signs as they lie along it
    texts: tuple[tuple[str, float], ...]


class ClassView(NamedTuple):
    """A class, and what speaks for it and against it."""

    name: str
    pro: list[ReasonView]
    con: list[ReasonView]


@dataclass(frozen=True)
class UnitMap:
    """A number per head and MLP, laid out by layer."""

    values: Array  # (layers, columns), NaN where nothing is adapted
    columns: list[str]  # the columns' names
    reach: float  # the largest distance of a value from the middle of the scale
    scale: float = 1.0  # what the numbers of its cells are multiplied with
    digits: int = 2  # after their points

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
    ends = list(accumulate(gains.counts))[:-1]
    columns = {
        name: np.split(tensor.double().numpy(), ends) for name, tensor in gains.tensors().items()
    }
    return [
        UnitView(unit, **{name: parts[place] for name, parts in columns.items()})
        for place, unit in enumerate(gains.units)
    ]


def gain_map(views: list[UnitView]) -> UnitMap | None:
    """The mean gain of every head and MLP; None where no unit has a layer."""
    return _map({view.unit: view.mean_gain for view in views}, 1.0)


def share_map(views: list[UnitView]) -> UnitMap | None:
    """The share of the change of the logits that every head and MLP accounts for."""
    shares = {view.unit: float(view.share.sum()) for view in views}
    return _map(shares, 0.0, scale=100.0, digits=1)


def head_maps(head: HeadShares) -> tuple[UnitMap | None, UnitMap | None]:
    """Share of what a class head says, and mean pull to the label, of every head and MLP."""
    sums: list[dict[Unit, float]] = []
    for tensor in (head.share, head.toward_label):
        parts = tensor.double().split(list(head.counts))
        sums.append({u: float(p.sum()) for u, p in zip(head.units, parts, strict=True)})
    return _map(sums[0], 0.0, scale=100.0, digits=1), _map(sums[1], 0.0)


def head_components(record: RunRecord, count: int = 12) -> list[HeadComponent]:
    """The components that account for most of what a class head says, whatever their sign."""
    head, found = record.head, []
    assert head is not None
    words = {(item.unit, item.component): item for item in record.words}
    most = movement.strongest_of(head.share, head.units, head.counts, False, count)
    for unit, number, column, share in most:
        named, toward = None if head.whole else number, float(head.toward_label[column])
        found.append(HeadComponent(unit, named, share, toward, words.get((unit, named))))
    return found


def class_views(record: RunRecord) -> list[ClassView]:
    """Every class that has test images, in their order."""
    if record.head is None:
        return []
    names = record.class_names
    words = {(item.unit, item.component): item.texts for item in record.words}

    def view(reason: Reason) -> ReasonView:
        texts = words.get((reason.unit, reason.component), ())
        turned = tuple((text, coefficient * reason.side) for text, coefficient in texts[:2])
        return ReasonView(**vars(reason), texts=turned)

    return [
        ClassView(names[item.class_index], [*map(view, item.pro)], [*map(view, item.con)])
        for item in record.head.reasons
    ]


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
            found.append(ComponentView(view.unit, number, share, toward, known, float(gain)))
    return sorted(found, key=lambda item: -abs(item.share))[:count]


def widest_spectra(views: list[UnitView], count: int = 4) -> list[UnitView]:
    """The units that account for most of the change, of those with a spectrum to show."""
    known = [
        view
        for view in views
        if view.eigenvalues is not None and len(view.gains) > 1 and view.eigenvalues.max() > 0
    ]
    return sorted(known, key=lambda view: -abs(float(view.share.sum())))[:count]


def _map(values: dict[Unit, float], middle: float, **cells: Any) -> UnitMap | None:
    placed = {unit: [value] for unit, value in values.items() if unit.layer is not None}
    if not placed:
        return None
    grid, columns = gains_by_place(placed)
    return UnitMap(grid, columns, max(float(np.nanmax(np.abs(grid - middle))), 1e-6), **cells)
