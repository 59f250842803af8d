"""From the coordinates of one adapter to those of another, so that no image is read again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from ...bases.basis import SpectralBasis
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Rows
from ...tuner import ReadoutState, ResiDualConfig, active_adapter, put_basis, readout_state
from .fits import View

NAME = "bench"


def view_of(first: ReadoutState, state: ReadoutState) -> View:
    """From coordinates of one adapter to those of another of the same model.

    Of a head or MLP, c' = Φ' (Φᵀ c + μ − μ'): exact as far as the first one's directions span what
    the unit writes. Bases of images do, as those of weights do but for a head's share of its
    layer's bias, which they do not hold. Of the output, c' = Φ' (y − μ').
    """
    directions = state.directions.double()
    matrices, shift = [], -(state.directions @ state.means[0])
    if not any(unit.kind == "output" for unit in state.settings.units):
        ends = accumulate(first.counts)
        own = zip(first.settings.units, first.counts, ends, first.means, strict=True)
        places = {unit: (slice(end - count, end), mean) for unit, count, end, mean in own}
        shifts = []
        blocks = directions.split(list(state.counts))
        for unit, block in zip(state.settings.units, blocks, strict=True):
            columns, mean = places[unit]  # of the first one's coordinates
            matrices.append((columns, first.directions[columns].double() @ block.mT))
            shifts.append(block @ mean.double())
        shift = torch.cat(shifts) - state.shift.double()

    def view(data: Coordinates) -> Coordinates:
        if not matrices:
            found = data.readout.double() @ directions.mT
        else:
            values = data.coordinates.double()
            found = torch.cat([values[:, part] @ matrix for part, matrix in matrices], dim=1)
        moved = (found + shift).to(data.coordinates.dtype)
        return replace(data, coordinates=moved, state=state)

    return view


@contextmanager
def another_adapter(
    rows: Rows, config: ResiDualConfig, basis: SpectralBasis | None
) -> Iterator[View]:
    """Another adapter is active in the rows' model while the block runs, and is gone afterwards."""
    model = rows.classifier.model
    active = active_adapter(model)
    model.add_adapter(NAME, config)
    try:
        if basis is not None:
            put_basis(model, basis, NAME)
        state = readout_state(model, NAME).map(Tensor.cpu)
        model.set_adapter(NAME)
        yield view_of(rows.data.state, state)
    finally:
        model.set_adapter(active)
        model.delete_adapter(NAME)
