"""From the coordinates of one adapter to those of another, so that no image is read again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ...bases.basis import SpectralBasis
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Rows
from ...tuner import ReadoutState, ResiDualConfig, active_adapter, put_basis, readout_state

NAME = "bench"


@dataclass(frozen=True)
class Other:
    """From coordinates of one adapter to those of another of the same model.

    Of a head or MLP, c' = Φ' (Φᵀ c + μ − μ'): exact as far as the first one's directions span what
    the unit writes. Bases of images do, as those of weights do but for a head's share of its
    layer's bias, which they do not hold. Of the output, c' = Φ' (y − μ').
    """

    state: ReadoutState  # of the other adapter
    # for each of its units, columns of the first one's and Φ Φ'ᵀ
    matrices: tuple[tuple[slice, Tensor], ...]
    shift: Tensor  # what is added (K',)

    @classmethod
    def of(cls, first: ReadoutState, state: ReadoutState) -> "Other":
        """What leads from one to the other, in float64 as far as it is kept."""
        if any(unit.kind == "output" for unit in state.settings.units):
            return cls(state, (), -(state.directions @ state.means[0]))
        ends = accumulate(first.counts)
        own = zip(first.settings.units, first.counts, ends, first.means, strict=True)
        places = {unit: (slice(end - count, end), mean) for unit, count, end, mean in own}
        matrices, shifts = [], []
        blocks = state.directions.double().split(list(state.counts))
        for unit, block in zip(state.settings.units, blocks, strict=True):
            columns, mean = places[unit]
            matrices.append((columns, first.directions[columns].double() @ block.mT))
            shifts.append(block @ mean.double())
        shift = torch.cat(shifts) - state.shift.double()
        return cls(state, tuple(matrices), shift)

    def __call__(self, data: Coordinates) -> Coordinates:
        """The other adapter's of the same images."""
        if not self.matrices:
            found = data.readout.double() @ self.state.directions.double().mT
        else:
            values = data.coordinates.double()
            found = torch.cat([values[:, part] @ matrix for part, matrix in self.matrices], dim=1)
        moved = (found + self.shift).to(data.coordinates.dtype)
        return replace(data, coordinates=moved, state=self.state)


@contextmanager
def another_adapter(
    rows: Rows, config: ResiDualConfig, basis: SpectralBasis | None
) -> Iterator[Other]:
    """Another adapter is active in the rows' model while the block runs, and is gone afterwards."""
    model = rows.classifier.model
    active = active_adapter(model)
    model.add_adapter(NAME, config)
    try:
        if basis is not None:
            put_basis(model, basis, NAME)
        state = readout_state(model, NAME).map(Tensor.cpu)
        model.set_adapter(NAME)
        yield Other.of(rows.data.state, state)
    finally:
        model.set_adapter(active)
        model.delete_adapter(NAME)
