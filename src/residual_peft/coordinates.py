"""One pass over the images -> coordinates, all that fitting the gains needs of them.

y' = base + (c ⊙ (λ − neutral)) Φ is affine in the gains, and neither c nor base depends on them
(`method.md`, section 3). So the images are seen once; `solvers` does the rest.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .anatomy import find_tower
from .bases import SpectralBasis
from .data import with_progress
from .decomposition import checked_capture, checked_inputs, run_tower, unadapted
from .errors import ResiDualError
from .spectra import BasisAccumulator
from .taps import Capture, tapped
from .tuner import (
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

Progress = bool | Callable[[int], object]
_Rows = TypeVar("_Rows", bound="Readouts")


@dataclass(frozen=True)
class Readouts:
    """What a pass over N labelled images leaves: the readouts of the unadapted model."""

    readout: Tensor  # y (N, d)
    labels: Tensor  # (N,), or with several per image zeros and ones (N, C)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self: _Rows, index: Tensor) -> _Rows:
        """Those of some of the images."""
        return replace(self, **{name: t[index] for name, t in self._tensors().items()})

    def to(self: _Rows, device: torch.device | str) -> _Rows:
        """The same on another device."""
        return replace(self, **{name: t.to(device) for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Coordinates(Readouts):
    """The same for one adapter, with the coordinates that its gains scale."""

    coordinates: Tensor  # c (N, K)
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
    anatomy, readouts, labels = find_tower(model), [], []
    for batch in with_progress(batches, "Reading images", progress):
        inputs = checked_inputs(anatomy, batch)
        with torch.no_grad(), unadapted(model):
            readout = run_tower(model, inputs, anatomy=anatomy)
        readouts.append(readout.cpu())
        labels.append(_labels(batch))
    return Readouts(_joined(readouts), torch.cat(labels))


def collect_coordinates(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter_name: str | None = None,
    progress: Progress = False,
) -> Coordinates:
    """Coordinates for a ResiDual adapter, on the CPU, in one pass of the unadapted model.

    The units of the first batch are checked to add up to the model's own readout.

    Args:
        model: a model with a ResiDual adapter.
        batches: as for `collect_readouts`.
        adapter_name: None for the active adapter.
        progress: as for `collect_readouts`.

    Raises:
        ResiDualError: as `collect_readouts`; no such adapter, or units that do not add up.
    """
    anatomy, state = adapted_tower(model, adapter_name), readout_state(model, adapter_name)
    readouts: list[Tensor] = []
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in with_progress(batches, "Reading images", progress):
        inputs = checked_inputs(anatomy, batch)
        capture: Capture
        if not readouts:
            capture, readout = checked_capture(model, anatomy, inputs)
        else:
            with torch.no_grad(), unadapted(model), tapped(anatomy) as tap:
                readout = run_tower(model, inputs, anatomy=anatomy)
                capture = tap.take()
        found.append(coordinates_of(state, capture).cpu())
        readouts.append(readout.to(state.directions.dtype).cpu())
        labels.append(_labels(batch))
    readout = _joined(readouts)
    return Coordinates(readout, torch.cat(labels), torch.cat(found), state.map(Tensor.cpu))


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
    accumulator = BasisAccumulator(model, config.units, side=anatomy.side, readout=anatomy.readout)
    kinds = {unit.kind for unit in accumulator.units}
    seen: list[tuple[Capture, Tensor]] = []
    labels: list[Tensor] = []
    for batch in with_progress(batches, "Reading images", progress):
        capture, readout = checked_capture(model, anatomy, batch)
        accumulator.add(capture)
        capture.layers = [None] * len(capture.layers)
        if "head" not in kinds:
            capture.heads = [None] * len(capture.heads)
        if "mlp" not in kinds:
            capture.mlps = [None] * len(capture.mlps)
        seen.append((capture.map(Tensor.cpu), readout.cpu()))
        labels.append(_labels(batch))
    if not seen:
        raise ResiDualError("wanted at least one batch of images, got none.")
    components = None if config.component_pattern else config.components
    put_basis(model, SpectralBasis.from_accumulator(accumulator, components), name)
    state = readout_state(model, name).map(Tensor.cpu)
    readout = torch.cat([part for _, part in seen]).to(state.directions.dtype)
    found: Tensor | None = None
    for start, (capture, _) in zip(_starts(labels), seen, strict=True):
        part = coordinates_of(state, capture)
        if found is None:
            found = part.new_empty(len(readout), part.shape[1])
        found[start : start + len(part)] = part
    assert found is not None
    return Coordinates(readout, torch.cat(labels), found, state)


def _starts(parts: list[Tensor]) -> list[int]:
    """Where each part begins among all of them."""
    return [0, *accumulate(len(part) for part in parts)][:-1]


def _labels(batch: Any) -> Tensor:
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise ResiDualError("wanted batches with 'pixel_values' and 'labels', got no labels.")
    return torch.as_tensor(batch["labels"]).cpu()


def _joined(readouts: list[Tensor]) -> Tensor:
    if not readouts:
        raise ResiDualError("wanted at least one batch of images, got none.")
    return torch.cat(readouts)
