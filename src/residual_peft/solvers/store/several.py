"""Several stores as one, each image read where it lies."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import ResiDualError
from ...tuner import ReadoutState
from ..coordinates import Coordinates
from .reading import CoordinateStore, InParts


@dataclass(frozen=True)
class Stores(InParts):
    """Stores of one adapter's coordinates, for the solvers as one store is."""

    # of splits of the same data, such as training and validation images
    stores: tuple[CoordinateStore, ...]

    def __post_init__(self) -> None:
        adapters = {store.manifest["adapter"] for store in self.stores}
        if len(adapters) != 1:
            raise ResiDualError(
                f"wanted stores of one adapter's coordinates, got those of {len(adapters)}."
            )

    @property
    def state(self) -> ReadoutState:
        """Of the adapter."""
        return self.stores[0].state

    @cached_property
    def parts(self) -> tuple[Coordinates, ...]:
        """One `Coordinates` per shard; read from disk when they are touched."""
        return tuple(part for store in self.stores for part in store.parts)

    @cached_property
    def labels(self) -> Tensor:
        """(N,), or with several labels per image zeros and ones (N, C)."""
        return torch.cat([store.labels for store in self.stores])

    @cached_property
    def readout(self) -> Tensor:
        """y (N, d) of the unadapted model, in memory."""
        return torch.cat([part.readout for part in self.parts])

    @property
    def coordinate_bytes(self) -> int:
        """Of all coordinates in float32."""
        return len(self) * len(self.state.shift) * 4
