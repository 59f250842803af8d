"""How many dimensions a unit needs: linear (its spectrum) and not (TwoNN on its contributions).

`method.md`, section 6. A head's coordinates stand in an orthonormal frame, so that its 64 numbers
per image have the distances that its contributions have in the readout.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bases.basis import SpectralBasis
from ..data.progress import Bar
from ..errors import ResiDualError
from ..towers.units import Unit
from .contributions import Contributions
from .neighbours import TooFewPoints, TwoNN, two_nn


def linear_dimension(
    eigenvalues: Tensor, total: Tensor | float | None = None, share: float = 0.99
) -> int:
    """The fewest directions whose variances reach a share of the total; 0 of no variance at all.

    Eigenvalues are (k,), decreasing; `total` is None where they are all of them.

    Raises:
        ResiDualError: a share outside (0, 1], or one that the directions do not reach.

    Examples:
        >>> linear_dimension(torch.tensor([6.0, 3.0, 1.0]), share=0.9)
        2
    """
    if not 0 < share <= 1:
        raise ResiDualError(f"wanted a share of the variance in (0, 1], got share={share}.")
    values = eigenvalues.double()
    whole = float(values.sum() if total is None else total)
    if whole <= 0:
        return 0
    reached = values.cumsum(0) / whole
    # float32 eigenvalues, or a total summed in another order, miss a share of 1 by a rounding; that
    # of half precision is no share to give away
    eps = min(torch.finfo(kind).eps for kind in (eigenvalues.dtype, torch.float32))
    wanted = share - 4 * eps * max(len(values), 1)
    dimension = int((reached < wanted).sum()) + 1
    if dimension > len(values):
        held = float(reached[-1]) if len(values) else 0.0
        raise ResiDualError(
            f"wanted the directions that reach {share} of the variance, but the {len(values)} "
            f"that an earlier truncation left hold {held:.3f}: use a whole basis or a lower share."
        )
    return dimension


def participation_ratio(eigenvalues: Tensor) -> float:
    """(Σλ)² / Σλ²: k for k equal eigenvalues, 1 for a single one, NaN for none.

    Examples:
        >>> participation_ratio(torch.tensor([2.0, 2.0, 2.0]))
        3.0
    """
    values = eigenvalues.double()
    values = values / values.max() if values.numel() and float(values.max()) > 0 else values
    return _ratio(float(values.sum()) ** 2, float(values.square().sum()))


@dataclass(frozen=True)
class LayerDimension:
    """Means over the units of one kind in one layer; see `DimensionProfile` for the fields.

    `two_nn` and `ratio` are over the units that have one, NaN where none has.
    """

    layer: int
    kind: str
    units: int
    linear: float
    first_share: float
    participation: float
    two_nn: float
    ratio: float


@dataclass(frozen=True)
class DimensionProfile:
    """The dimensions of U units.

    Attributes:
        units: in the order of the source.
        share: of the variance that `linear` reaches.
        linear: fewest directions that reach it, (U,) int64.
        first_share: share of the variance along the first direction, (U,).
        participation: (Σλ)² / Σλ² over the directions held, (U,).
        two_nn: TwoNN by the fit, (U,); NaN where it was not asked for, or where a unit writes fewer
            than three different things.
        likelihood: TwoNN by maximum likelihood, (U,).
        duplicates: images that TwoNN left out as copies, (U,) int64.
        images: how many TwoNN was given; 0 where it was not asked for.
    """

    units: tuple[Unit, ...]
    share: float
    linear: Tensor
    first_share: Tensor
    participation: Tensor
    two_nn: Tensor
    likelihood: Tensor
    duplicates: Tensor
    images: int

    @property
    def ratio(self) -> Tensor:
        """Linear over TwoNN, (U,): how far from flat the unit's contributions lie."""
        return self.linear / self.two_nn

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain numbers per unit, None for what is missing: for tables, JSON."""
        names = ["linear", "two_nn", "ratio", "likelihood"]
        names += ["first_share", "participation", "duplicates"]
        columns = [getattr(self, name).tolist() for name in names]
        return [
            {"unit": str(unit)} | dict(zip(names, map(plain, values), strict=True))
            for unit, *values in zip(self.units, *columns, strict=True)
        ]

    def by_layer(self) -> list[LayerDimension]:
        """Means per layer, heads and MLPs apart, first layer first; embed and output have none."""
        groups: dict[tuple[int, str], list[int]] = {}
        for index, unit in enumerate(self.units):
            if unit.layer is not None:
                groups.setdefault((unit.layer, unit.kind), []).append(index)
        columns = (self.linear, self.first_share, self.participation, self.two_nn, self.ratio)
        return [
            LayerDimension(
                layer,
                kind,
                len(rows),
                *(float(values[rows].double().nanmean()) for values in columns),
            )
            for (layer, kind), rows in sorted(groups.items())
        ]


def dimension_profile(
    source: Contributions | SpectralBasis,
    *,
    share: float = 0.99,
    two_nn_images: int = 50_000,
    seed: int = 0,
    resolution: float | None = None,
    block: int = 512,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> DimensionProfile:
    """The dimensions of every unit: linear, TwoNN, their ratio, first share, participation ratio.

    A `SpectralBasis` has spectra and no points, and so no TwoNN. TwoNN takes one unit at a time:
    memory is that of one, `block` × N float64 numbers, however many units there are.

    Args:
        source: contributions to N readouts, or a basis.
        share: of the variance, for the linear dimension.
        two_nn_images: at most so many, drawn without replacement, the same for all units; 0 for
            no TwoNN.
        seed: of the draw.
        resolution: see `two_nn`.
        block: see `two_nn`.
        device: where distances are computed; None for where the coordinates are.
        progress: whether to show a bar.

    Raises:
        ResiDualError: a basis that was truncated below `share`, or what `two_nn` refuses.
    """
    if two_nn_images < 0 or two_nn_images in (1, 2):
        raise ResiDualError(
            f"wanted at least 3 images for TwoNN or 0 for none, got two_nn_images={two_nn_images}."
        )
    # eigenvalues and total variance of every unit
    if isinstance(source, SpectralBasis):
        spectra = [*zip(source.eigenvalues, source.total_variance.tolist(), strict=True)]
    else:
        spectra = [(part.eigenvalues, float(part.eigenvalues.sum())) for part in source.parts]
    clouds: list[TwoNN | None] = [None] * len(spectra)
    images = 0
    if isinstance(source, Contributions) and two_nn_images:
        images = min(two_nn_images, len(source))
        chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        chosen = chosen[:images].sort().values
        parts = Bar(source.parts, desc="TwoNN", unit="unit", disable=not progress)
        for index, part in enumerate(parts):
            points = part.coordinates[chosen].to(device or part.coordinates.device)
            if points.shape[1]:
                with suppress(TooFewPoints):  # that write too few different things for one
                    clouds[index] = two_nn(points, block=block, resolution=resolution)
    return DimensionProfile(
        units=tuple(source.units),
        share=share,
        linear=torch.tensor([linear_dimension(v, total, share) for v, total in spectra]),
        first_share=_doubles([_ratio(float(v[:1].sum()), total) for v, total in spectra]),
        participation=_doubles([participation_ratio(values) for values, _ in spectra]),
        two_nn=_doubles([c.dimension if c else math.nan for c in clouds]),
        likelihood=_doubles([c.likelihood if c else math.nan for c in clouds]),
        duplicates=torch.tensor([c.duplicates if c else 0 for c in clouds]),
        images=images,
    )


def _doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _ratio(over: float, under: float) -> float:
    """Over / under; infinite or NaN instead of an error where `under` is 0."""
    if under == 0:
        return math.inf if over > 0 else math.nan
    return over / under


def plain(value: float) -> float | None:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None
