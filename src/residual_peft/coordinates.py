"""One pass over the images -> coordinates, all that fitting the gains needs of them.

y' = base + (c ⊙ (λ − neutral)) Φ is affine in the gains, and neither c nor base depends on them
(`method.md`, section 3). So the images are seen once; `solvers` does the rest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .anatomy import find_tower
from .data import with_progress
from .decomposition import check_pixels, checked_capture, run_tower, unadapted
from .errors import ResiDualError
from .spectra import pixels_of
from .taps import Capture, tapped
from .tuner import ReadoutState, base_of, compose, coordinates_of, readout_state

Progress = bool | Callable[[int], object]
_Rows = TypeVar("_Rows", bound="Readouts")


@dataclass(frozen=True)
class Readouts:
    """What a pass over N labelled images leaves: the readouts of the unadapted model."""

    readout: Tensor  # y (N, d)
    labels: Tensor  # (N,)

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
        batches: mappings with `pixel_values` (B, C, H, W) and `labels` (B,), as `data.batches`.
        progress: True for a bar, or what to call after each batch with its number of images.

    Raises:
        ResiDualError: no images, no labels, or pixels that are not finite.
    """
    anatomy, readouts, labels = find_tower(model), [], []
    for batch in with_progress(batches, "Reading images", progress):
        pixels = _pixels(batch)
        with torch.no_grad(), unadapted(model):
            readout = run_tower(model, pixels.to(anatomy.layers[0].output_projection.weight.device))
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
    anatomy, state = find_tower(model), readout_state(model, adapter_name)
    device = anatomy.layers[0].output_projection.weight.device
    readouts: list[Tensor] = []
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in with_progress(batches, "Reading images", progress):
        pixels = _pixels(batch).to(device)
        capture: Capture
        if not readouts:
            capture, readout = checked_capture(model, anatomy, pixels)
        else:
            with torch.no_grad(), unadapted(model), tapped(anatomy) as tap:
                readout = run_tower(model, pixels)
                capture = tap.take()
        found.append(coordinates_of(state, capture).cpu())
        readouts.append(readout.to(state.directions.dtype).cpu())
        labels.append(_labels(batch))
    readout = _joined(readouts)
    return Coordinates(readout, torch.cat(labels), torch.cat(found), state.map(Tensor.cpu))


def _pixels(batch: Any) -> Tensor:
    pixels = pixels_of(batch)
    check_pixels(pixels)
    return pixels


def _labels(batch: Any) -> Tensor:
    if not isinstance(batch, dict) or "labels" not in batch:
        raise ResiDualError("wanted batches with 'pixel_values' and 'labels', got no labels.")
    return torch.as_tensor(batch["labels"]).cpu()


def _joined(readouts: list[Tensor]) -> Tensor:
    if not readouts:
        raise ResiDualError("wanted at least one batch of images, got none.")
    return torch.cat(readouts)
