"""What every unit wrote to the readouts of N images, each unit in its own principal axes.

Every analysis reads these. For unit u, with N images, k_u directions and the readout's width d,

    x_u = μ_u + c_u Φ_u        (N, d) = (d,) + (N, k_u)(k_u, d)

exactly: a head's k_u is at most e + 1 (`method.md`, section 2), so that 64 numbers per image stand
for 768, distances and variances included, since the rows of Φ_u are orthonormal.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.basis import SpectralBasis
from ..bases.fingerprint import Fingerprint
from ..bases.spectra import spectrum
from ..errors import ResiDualError
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit


@dataclass(frozen=True)
class UnitContribution:
    """One unit's contributions to N readouts: `x = mean + coordinates @ components`.

    Attributes:
        unit: whose.
        mean: μ (d,), over the images, float64.
        components: Φ (k, d), orthonormal rows by decreasing variance, float64.
        coordinates: c (N, k), mean zero, uncorrelated, float32 unless collected otherwise.
        eigenvalues: their variances (k,), float64, with N − 1 in the denominator.
    """

    unit: Unit
    mean: Tensor
    components: Tensor
    coordinates: Tensor
    eigenvalues: Tensor

    def full(self) -> Tensor:
        """x (N, d), the mean included, in the dtype of the coordinates."""
        dtype = self.coordinates.dtype
        return self.coordinates @ self.components.to(dtype) + self.mean.to(dtype)


@dataclass(frozen=True)
class Contributions:
    """What U units wrote to the readouts of N images.

    ```python
    seen = collect_contributions(model, batches)
    seen["layer3.head5"].eigenvalues                     # (k,)
    seen.select(["head"], layers=[10, 11])               # fewer units
    seen.scores(classifier.class_embeddings)             # (N, U, C): what each says of each class
    ```

    Attributes:
        units: in the order of the tower.
        parts: one `UnitContribution` per unit.
        readout: y (N, d) of the unadapted model, float32.
        labels: (N,), or None where the batches had none.
        collected: how many images the axes and eigenvalues are of; more than N after `rows`.
    """

    units: tuple[Unit, ...]
    parts: tuple[UnitContribution, ...]
    readout: Tensor
    labels: Tensor | None
    collected: int = 0

    def __post_init__(self) -> None:
        if not self.collected:
            object.__setattr__(self, "collected", len(self.readout))

    def __len__(self) -> int:
        return len(self.readout)

    def __iter__(self) -> Any:
        return iter(self.parts)

    def __getitem__(self, unit: Unit | str) -> UnitContribution:
        unit = Unit.parse(unit) if isinstance(unit, str) else unit
        if unit not in self.units:
            raise ResiDualError(
                f"there are no contributions of {unit}; there are those of {len(self.units)} "
                f"units, {self.units[0]} to {self.units[-1]}."
            )
        return self.parts[self.units.index(unit)]

    @property
    def width(self) -> int:
        """The width d of the readout."""
        return self.readout.shape[1]

    @cached_property
    def rest(self) -> Tensor:
        """What is in the readout and none of the units wrote, (N, d): P β, and other units."""
        rest = self.readout.double()
        for part in self.parts:
            rest = rest - part.mean - part.coordinates.double() @ part.components
        return rest.to(self.readout.dtype)

    def select(
        self,
        units: Iterable[Unit | str] | Unit | str | None = None,
        layers: Iterable[int] | None = None,
    ) -> "Contributions":
        """Some of the units; what the others wrote moves to `rest`.

        Args:
            units: kinds ("head"), names ("layer3.head5") or `Unit`s; None for all.
            layers: of these layers only; None for all.

        Raises:
            ResiDualError: nothing is left.
        """
        units = [units] if isinstance(units, str | Unit) else units
        names = None if units is None else {str(unit) for unit in units}
        inside = None if layers is None else set(layers)
        kept = [
            part
            for part in self.parts
            if (names is None or part.unit.kind in names or str(part.unit) in names)
            and (inside is None or part.unit.layer in inside)
        ]
        if not kept:
            raise ResiDualError(
                f"no unit is left of {len(self.units)} with units={names and sorted(names)} and "
                f"layers={inside and sorted(inside)}."
            )
        return replace(self, units=tuple(p.unit for p in kept), parts=tuple(kept))

    def rows(self, index: Tensor) -> "Contributions":
        """Those to the readouts of some of the images, in the same axes: μ, Φ and λ stay."""
        parts = tuple(replace(part, coordinates=part.coordinates[index]) for part in self.parts)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, parts=parts, readout=self.readout[index], labels=labels)

    def scores(self, directions: Tensor) -> Tensor:
        """What each unit adds to the readout along some directions: x_u · w, (N, U, C).

        Summed over the units, with `rest @ directions.T` on top, it is `readout @ directions.T`.

        Args:
            directions: (C, d), such as class embeddings.
        """
        found = torch.empty(len(self), len(self.units), len(directions))
        for index, part in enumerate(self.parts):
            along = directions.to(part.components)
            inside = (part.components @ along.T).to(part.coordinates.dtype)
            found[:, index] = part.coordinates @ inside + (along @ part.mean).float()
        return found

    def basis(self, model: nn.Module) -> SpectralBasis:
        """The units' axes as a `SpectralBasis` of the model that these were collected from.

        Of `rows` it is the same one: their axes are those of all images.
        """
        return SpectralBasis(
            units=self.units,
            means=torch.stack([part.mean for part in self.parts]),
            components=[part.components for part in self.parts],
            eigenvalues=[part.eigenvalues for part in self.parts],
            total_variance=torch.stack([part.eigenvalues.sum() for part in self.parts]),
            num_samples=self.collected,
            source="data",
            fingerprint=Fingerprint.of(model),
        )

    @classmethod
    def from_coordinates(cls, rows: Coordinates | CoordinateStore) -> "Contributions":
        """The contributions of an adapter's units from its coordinates, without another pass.

        Exact where the adapter's basis holds all directions of its data; what a truncated one, or
        one from the weights alone, left out is in `rest`.

        Raises:
            ResiDualError: the adapter adapts the output, or fewer than two images.
        """
        whole = (rows.load() if isinstance(rows, CoordinateStore) else rows).to("cpu")
        state = whole.state
        check_count(len(whole))
        if any(unit.kind == "output" for unit in state.settings.units):
            raise ResiDualError("the output is no unit of its own: wanted heads or MLPs.")
        columns = whole.coordinates.split(list(state.counts), dim=1)
        directions = state.directions.double().split(list(state.counts))
        told = (state.settings.units, columns, directions, state.means.double())
        parts = tuple(in_principal_axes(*of_unit) for of_unit in zip(*told, strict=True))
        return cls(state.settings.units, parts, whole.readout.float(), whole.labels)


def check_count(count: int) -> None:
    """Refuse fewer images than a variance needs."""
    if count < 2:
        raise ResiDualError(f"wanted at least two images to tell variance from, got {count}.")


def in_principal_axes(
    unit: Unit, inside: Tensor, frame: Tensor | None = None, offset: Tensor | float = 0.0
) -> UnitContribution:
    """x = offset + inside @ frame, (N, r) in orthonormal rows (r, d) -> mean and principal axes."""
    exact = inside.double()
    middle = exact.mean(0)
    exact = exact - middle
    covariance = exact.T @ exact / (len(exact) - 1)
    found = spectrum(middle, covariance, None, len(exact))
    coordinates = (exact @ found.components.T).to(inside.dtype)
    mean, components = middle, found.components
    if frame is not None:
        mean, components = middle @ frame, found.components @ frame
    return UnitContribution(unit, mean + offset, components, coordinates, found.eigenvalues)
