"""How alike units are by their spectra: all against all, and one unit across datasets.

`method.md`, section 6, the normalized spectral cosine. Simpler measures, which compare what units
wrote for the same images, are in `agreement`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bases.basis import SpectralBasis
from ..bases.spectra import Components
from ..errors import ResiDualError
from ..towers.units import Unit
from .dimension import plain
from .matching import Side, check_widths


@dataclass(frozen=True)
class LayerSimilarity:
    """Means over pairs of units: `values[i, j]` of layer `layers[i]` and layer `others[j]`."""

    layers: tuple[int, ...]
    others: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class SimilarityMatrix:
    """How alike two sets of units are, or one set within itself.

    Attributes:
        units: of the rows.
        others: of the columns.
        values: (U, V) float64, larger for more alike, NaN where a unit has no direction.
        measure: what was measured, in words.
        within: both are the same units of the same source, so that the diagonal says nothing.
    """

    units: tuple[Unit, ...]
    others: tuple[Unit, ...]
    values: Tensor
    measure: str
    within: bool

    def between(self, unit: Unit | str, other: Unit | str) -> float:
        """The value of one pair.

        Raises:
            ResiDualError: there is no such unit.
        """
        return float(self.values[_index(self.units, unit), _index(self.others, other)])

    def nearest(self, unit: Unit | str, count: int = 5) -> list[tuple[Unit, float]]:
        """The columns most like a row, best first, the unit itself left out.

        Raises:
            ResiDualError: there is no such unit.
        """
        row = _index(self.units, unit)
        values = self.values[row].nan_to_num(nan=-math.inf)
        order = values.argsort(descending=True, stable=True).tolist()
        kept = [j for j in order if not (self.within and j == row)][:count]
        return [(self.others[j], float(self.values[row, j])) for j in kept]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per pair, each pair once and no unit with itself: for tables and JSON."""
        values = self.values.tolist()
        return [
            {"unit": str(unit), "other": str(other), "value": plain(values[i][j])}
            for i, unit in enumerate(self.units)
            for j, other in enumerate(self.others)
            if not self.within or i < j
        ]

    def by_layer(self, kind: str = "head") -> LayerSimilarity:
        """Mean over pairs of units of one kind by their layers, no unit with itself.

        Raises:
            ResiDualError: there are no units of that kind with a layer.
        """
        mine, theirs = _by_layer(self.units, kind), _by_layer(self.others, kind)
        values = self.values.clone()
        if self.within:
            values.fill_diagonal_(math.nan)
        means = [[values[r][:, c].nanmean() for c in theirs.values()] for r in mine.values()]
        found = torch.tensor([[float(mean) for mean in row] for row in means]).double()
        return LayerSimilarity(tuple(mine), tuple(theirs), found)


def spectral_similarity(
    basis: SpectralBasis,
    other: SpectralBasis | None = None,
    *,
    units: Iterable[Unit | str] | None = None,
    weighted: bool = True,
    components: Components = None,
) -> SimilarityMatrix:
    """The normalized spectral cosine of all units against all (`spectral_cosine`), in float64.

    Args:
        basis: whose units are the rows.
        other: whose units are the columns; None for the same, where each pair is computed once.
        units: kinds ("head"), names or `Unit`s of both; None for all.
        weighted: by eigenvalues, or all directions alike.
        components: first so many directions, or those that reach a share; None for all.

    Raises:
        ResiDualError: readouts of different widths, whose directions cannot be compared, a unit
            that a basis lacks, or more components than one holds.
    """
    if other is not None:
        check_widths(basis.width, other.width)
    mine = _chosen(basis, units, components)
    theirs = mine if other is None else _chosen(other, units, components)
    values = torch.full((len(mine.units), len(theirs.units)), math.nan, dtype=torch.float64)
    # by decreasing k, so that those in a chunk have about as many directions
    rows, left = _sorted(mine, weighted)
    columns, right = (rows, left) if other is None else _sorted(theirs, weighted)
    for position, row in enumerate(rows):
        first = position + 1 if other is None else 0
        for start, stop in right.chunks(max(left.counts[position], 1), first):
            scores = left.against(position, right, start, stop)
            values[row, columns[start:stop]] = scores
            if other is None:
                values[columns[start:stop], row] = scores
        if other is None and left.counts[position]:
            values[row, row] = 1.0
    return SimilarityMatrix(mine.units, theirs.units, values, _measure(weighted), other is None)


@dataclass(frozen=True)
class SameUnitSimilarity:
    """How alike each unit is to itself from one dataset to another.

    Attributes:
        names: the S datasets.
        units: the U units.
        values: (U, S, S) float64, symmetric, 1 on the diagonals.
        measure: what was measured, in words.
    """

    names: tuple[str, ...]
    units: tuple[Unit, ...]
    values: Tensor
    measure: str

    def by_layer(self, kind: str = "head") -> dict[int, Tensor]:
        """Per layer the mean over its units of one kind, (S, S).

        Raises:
            ResiDualError: there are no units of that kind with a layer.
        """
        layers = _by_layer(self.units, kind)
        return {layer: self.values[index].nanmean(0) for layer, index in layers.items()}

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per unit and pair of datasets, each pair once: for tables and JSON."""
        return [
            {"unit": str(unit), "dataset": name, "other": other, "value": plain(values[i][j])}
            for unit, values in zip(self.units, self.values.tolist(), strict=True)
            for i, name in enumerate(self.names)
            for j, other in enumerate(self.names)
            if i < j
        ]


def same_unit_similarity(
    bases: Mapping[str, SpectralBasis],
    *,
    units: Iterable[Unit | str] | None = None,
    weighted: bool = True,
    components: Components = None,
) -> SameUnitSimilarity:
    """The normalized spectral cosine of each unit with itself between datasets.

    There is a basis of one model for each. Options are those of `spectral_similarity`.

    Raises:
        ResiDualError: fewer than two bases, or bases of different widths or units.
    """
    if len(bases) < 2:
        raise ResiDualError(f"wanted bases of two datasets or more, got {len(bases)}.")
    names = tuple(bases)
    chosen = [_chosen(basis, units, components) for basis in bases.values()]
    for name, basis in zip(names, chosen, strict=True):
        check_widths(chosen[0].width, basis.width)
        if basis.units != chosen[0].units:
            unlike = sorted(map(str, set(basis.units) ^ set(chosen[0].units)))
            raise ResiDualError(
                f"wanted the same units in every basis, but '{names[0]}' and '{name}' differ in "
                f"{len(unlike)}, such as {unlike[:1]}: name the units that all have."
            )
    values = torch.ones(len(chosen[0].units), len(names), len(names), dtype=torch.float64)
    for index in range(len(chosen[0].units)):
        side = Side(
            [basis.components[index] for basis in chosen],
            [basis.eigenvalues[index] for basis in chosen],
            weighted,
        )
        for i in range(len(names)):
            if not side.counts[i]:
                values[index, i, i] = math.nan
            for start, stop in side.chunks(max(side.counts[i], 1), i + 1):
                scores = side.against(i, side, start, stop)
                values[index, i, start:stop] = values[index, start:stop, i] = scores
    return SameUnitSimilarity(names, chosen[0].units, values, _measure(weighted))


def _measure(weighted: bool) -> str:
    return "spectral cosine" if weighted else "spectral cosine, unweighted"


def _chosen(
    basis: SpectralBasis, units: Iterable[Unit | str] | None, components: Components
) -> SpectralBasis:
    return (basis if units is None else basis.select(units)).truncate(components)


def _sorted(basis: SpectralBasis, weighted: bool) -> tuple[list[int], Side]:
    """The units by decreasing number of directions: their positions, and them."""
    counts = basis.component_counts
    order = sorted(range(len(counts)), key=lambda index: -counts[index])
    directions = [basis.components[index] for index in order]
    return order, Side(directions, [basis.eigenvalues[index] for index in order], weighted)


def _index(units: tuple[Unit, ...], unit: Unit | str) -> int:
    unit = Unit.parse(unit) if isinstance(unit, str) else unit
    if unit not in units:
        raise ResiDualError(
            f"there is no unit {unit} among the {len(units)} compared, {units[0]} to {units[-1]}."
        )
    return units.index(unit)


def _by_layer(units: tuple[Unit, ...], kind: str) -> dict[int, list[int]]:
    """Layer -> the positions of its units of a kind."""
    found: dict[int, list[int]] = {}
    for index, unit in enumerate(units):
        if unit.kind == kind and unit.layer is not None:
            found.setdefault(unit.layer, []).append(index)
    if not found:
        kinds = sorted({unit.kind for unit in units})
        raise ResiDualError(f"wanted units of kind {kind!r} in layers; these are {kinds}.")
    return dict(sorted(found.items()))
