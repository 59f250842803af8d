"""One pass over the images -> coordinates, all that fitting the gains needs of them.

y' = base + (c ⊙ (λ − neutral)) Φ is affine in the gains, and neither c nor base depends on them
(`method.md`, section 3). So the images are seen once; `solvers` does the rest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..bases.accumulator import BasisAccumulator
from ..bases.basis import SpectralBasis
from ..bases.reading import Captures, ReadBatch, reading
from ..bases.rows import Rows
from ..data.progress import Progress, images_of
from ..errors import ResiDualError
from ..tuner import (
    ReadoutState,
    active_adapter,
    adapted_tower,
    base_of,
    compose,
    coordinates_of,
    put_basis,
    readout_config,
    readout_state,
    restart_gains,
)

SHARED = ("stream", "pooled", "pooler", "constant")
"""The fields of a capture that coordinates need whatever units they are of."""
_Rows = TypeVar("_Rows", bound="Readouts")


@dataclass(frozen=True)
class Readouts:
    """What a pass over N labelled images leaves: the readouts of the unadapted model."""

    readout: Tensor  # y (N, d)
    labels: Tensor  # (N,), or with several per image zeros and ones (N, C)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self: _Rows, index: Tensor | slice) -> _Rows:
        """Those of some of the images."""
        return replace(self, **{name: t[index] for name, t in self._tensors().items()})

    def to(self: _Rows, device: torch.device | str) -> _Rows:
        """The same on another device."""
        return replace(self, **{name: t.to(device) for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Coordinates(Readouts):
    """The same for one adapter, with the coordinates that its gains scale.

    Attributes:
        readout: y (N, d) of the unadapted model.
        labels: (N,), or with several per image zeros and ones (N, C).
        coordinates: c (N, K).
        state: what of the adapter they are of, its gains aside.
    """

    coordinates: Tensor
    state: ReadoutState

    def to(self, device: torch.device | str) -> "Coordinates":
        """The same on another device."""
        moved = super().to(device)
        return replace(moved, state=self.state.map(lambda tensor: tensor.to(device)))

    @property
    def parts(self) -> "tuple[Coordinates, ...]":
        """Itself; a store on disk has one part per shard."""
        return (self,)

    @property
    def mean_length(self) -> float:
        """Mean ‖y‖ of the readouts."""
        return float(self.readout.double().norm(dim=1).mean())

    @property
    def base(self) -> Tensor:
        """The part of y' that does not depend on the gains, (N, d)."""
        return base_of(self.state, self.readout)

    def adapted(self, gains: Tensor) -> Tensor:
        """y' (N, d) at the given gains, (K,) or (U,)."""
        return compose(self.state, self.base, self.coordinates, gains)


def in_chunks(parts: Iterable[Coordinates], size: int) -> Iterator[Coordinates]:
    """Some images at a time of coordinates in parts, in memory."""
    for part in parts:
        for start in range(0, len(part), size):
            yield part.rows(slice(start, start + size))


@torch.inference_mode(False)
def collect_readouts(
    model: nn.Module, batches: Iterable[Any], *, progress: Progress = False
) -> Readouts:
    """Readouts of the unadapted model, on the CPU, in one pass.

    Args:
        model: adapted or not.
        batches: mappings with `pixel_values` (B, 3, H, W) and `labels` (B,), or (B, C) zeros
            and ones, as `data.batches`.
        progress: True for a bar, or what to call after each batch with its number of images.

    Raises:
        ResiDualError: no images, no labels, or pixels that are not finite.
    """
    kept = _Kept(images_of(batches))
    for seen in reading(model, None, batches, labelled=True, progress=progress):
        kept.add(seen)
    return Readouts(*kept.joined())


@torch.inference_mode(False)
def collect_coordinates(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter_name: str | None = None,
    progress: Progress = False,
) -> Coordinates:
    """Coordinates for a ResiDual adapter, on the CPU, in one pass of the unadapted model.

    The units of the first batch are checked to add up to the model's own readout. Memory: the
    coordinates and readouts, K + d numbers per image.

    Args:
        model: a model with a ResiDual adapter.
        batches: as for `collect_readouts`.
        adapter_name: None for the active adapter.
        progress: as for `collect_readouts`.

    Raises:
        ResiDualError: as `collect_readouts`; no such adapter, or units that do not add up.
    """
    anatomy, state = adapted_tower(model, adapter_name), readout_state(model, adapter_name)
    expected = images_of(batches)
    kept, found = _Kept(expected), Rows(expected)
    passed = reading(
        model, anatomy, batches, taps=True, check="first", labelled=True, progress=progress
    )
    for seen in passed:
        assert seen.capture is not None
        found.add(coordinates_of(state, seen.capture))
        kept.add(seen, state.directions.dtype)
    readout, labels = kept.joined()
    return Coordinates(readout, labels, found.joined(), state.map(Tensor.cpu))


@torch.inference_mode(False)
def collect_with_basis(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter_name: str | None = None,
    progress: Progress = False,
) -> Coordinates:
    """Fit an adapter's bases and collect its coordinates in one pass over the same images.

    What `fit_bases` and then `collect_coordinates` give, for one forward per image: what the heads
    and MLPs wrote is kept as it is, (2 L + 2) D numbers per image at most, until the basis is
    known. The units of every batch are checked to add up.

    Args:
        model: a model with a ResiDual adapter in readout mode.
        batches: as for `collect_readouts`.
        adapter_name: None for the active adapter.
        progress: as for `collect_readouts`.

    Raises:
        ResiDualError: as `fit_bases` and `collect_coordinates`.
    """
    name = active_adapter(model) if adapter_name is None else adapter_name
    config = readout_config(model, name)
    if not config.needs_basis:
        restart_gains(model, adapter_name=name)
        return collect_coordinates(model, batches, adapter_name=name, progress=progress)
    anatomy = adapted_tower(model, name)
    accumulator = BasisAccumulator(
        model, config.units, side=anatomy.side, readout=anatomy.readout.name
    )
    kinds = {unit.kind for unit in accumulator.units}
    asked = {"heads": "head", "mlps": "mlp", "embed": "embed"}
    needed = [name for name, kind in asked.items() if kind in kinds]
    kept, raw = _Kept(images_of(batches)), Captures([*needed, *SHARED])
    for seen in reading(model, anatomy, batches, taps=True, labelled=True, progress=progress):
        assert seen.capture is not None
        accumulator.add(seen.capture)
        raw.add(seen.capture)
        kept.add(seen)
    readout, labels = kept.joined()
    put_basis(model, SpectralBasis.from_accumulator(accumulator, config.most_components), name)
    del accumulator
    state = readout_state(model, name).map(Tensor.cpu)
    found = Rows(len(labels))
    for capture in raw.drained():
        found.add(coordinates_of(state, capture))
    return Coordinates(readout.to(state.directions.dtype), labels, found.joined(), state)


class _Kept:
    """Readouts and labels of a pass."""

    def __init__(self, expected: int | None) -> None:
        self.readout, self.labels = Rows(expected), Rows(expected)

    def add(self, batch: ReadBatch, dtype: torch.dtype | None = None) -> None:
        assert batch.labels is not None
        self.readout.add(batch.readout.to(dtype))
        self.labels.add(batch.labels)

    def joined(self) -> tuple[Tensor, Tensor]:
        if not len(self.labels):
            raise ResiDualError("wanted at least one batch of images, got none.")
        return self.readout.joined(), self.labels.joined()
