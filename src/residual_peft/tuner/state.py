"""What one adapter has in one layer: settings, a state, and tensors that are never rounded.

They may be trained with, whatever mode PyTorch is in where they are made: what is made under
`torch.inference_mode` can never be saved for a backward pass, and an adapter prepared there would
fail when it is trained, far from the cause.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .gains import KINDS, Gains

State = TypeVar("State", bound="AdapterState")


@dataclass(frozen=True)
class Settings:
    """What one adapter does in one layer: the part of its state that is no tensor."""

    counts: tuple[int, ...]  # directions that are kept of each unit; none for whole contributions
    kind: str  # of its gains

    @property
    def neutral(self) -> float:
        """The gain that leaves a coordinate alone."""
        return KINDS[self.kind].start

    @property
    def gains(self) -> Gains:
        """Its gains, over as many components as are kept."""
        return KINDS[self.kind].of(self.counts, self.neutral)


@dataclass(frozen=True)
class Placement:
    """What an adapter starts with in one layer."""

    settings: Settings
    tensors: Sequence[Tensor]  # of its basis; where it is not ready, only their shapes count
    gains: Tensor
    save_basis: bool  # whether the basis belongs to its file
    ready: bool = True  # or the tensors wait for a file


@dataclass(frozen=True)
class AdapterState:
    """What follows from one adapter's basis and the weights: tensors, and numbers beside them."""

    gains: Gains
    directions: Tensor  # Φ (K, d)

    def map(self: State, function: Callable[[Tensor], Tensor]) -> State:
        """Apply a function, such as a move to another device, to every tensor."""
        changed: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, gains=self.gains.map(function), **changed)


def without_rounding(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let `function` of `Module._apply` move tensors, but not round them, nor part shared ones."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # the first keeps its id from being reused

    def apply(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            result = function(tensor)
            rounded = result.dtype != tensor.dtype and result.element_size() < 4
            if rounded and result.is_floating_point():
                result = tensor.to(result.device)
            seen[id(tensor)] = tensor, result
        return seen[id(tensor)][1]

    return apply


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether one tensor could stand for both."""
    return one is other or (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and torch.equal(one, other)
    )


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave inference mode while the block runs; gradients are off there, as they were."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()
