"""Kinds of gains: how many an adapter has, and what they do to the coordinates of its components.

With c (B, K) the coordinates of K components and p what is trained, every kind changes them by

    Δc = factors(c) ⊙ spread(p − neutral)

which is affine in p: solvers, sums of adapters, many tasks in one pass and an adapter per sample
ask for nothing else. A new kind is a subclass here, entered in `KINDS` under its `granularity`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

PREFIX = "residual_peft_"
"""What the names of an adapter's tensors begin with; PEFT knows them by it."""
GAINS = f"{PREFIX}gains"  # the name of the trained tensors of every layer


@dataclass(frozen=True, eq=False)
class Gains:
    """One gain per component: λ_k scales the coordinate c_k."""

    counts: tuple[int, ...]  # k_u of each unit
    neutral: float  # what changes nothing
    unit_of: Tensor  # the unit of each component (K,)

    start: ClassVar[float] = 1.0
    """Where they begin, and what a ridge pulls them to: coordinates as they are."""
    whole: ClassVar[bool] = False  # whether they act on whole contributions, and need no directions
    scales: ClassVar[bool] = True
    """Whether they scale coordinates, as stream mode's weights and `analysis/` take for granted."""

    @classmethod
    def of(cls, counts: Sequence[int], neutral: float = 1.0) -> "Gains":
        """Those of units with so many components each."""
        units = torch.arange(len(counts), device="cpu")
        sizes = torch.tensor(counts, dtype=torch.int64, device="cpu")
        return cls(tuple(counts), neutral, units.repeat_interleave(sizes))

    @property
    def number(self) -> int:
        """How many there are, n."""
        return sum(self.counts)

    def spread(self, values: Tensor) -> Tensor:
        """One number per gain (..., n) -> one per component (..., K)."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Sums over each gain's components, (K,) -> (n,): the transpose of `spread`."""
        return values

    def split(self, gains: Tensor) -> tuple[Tensor, ...]:
        """The gains of each unit."""
        return gains.split(list(self.counts))

    def factors(self, coordinates: Tensor) -> Tensor:
        """What they multiply at each component, (B, K)."""
        return coordinates

    def offsets(self, gains: Tensor, dtype: torch.dtype) -> Tensor:
        """`spread(p − neutral)`, (..., K), rounded to `dtype` once the difference is taken.

        Before, a gain within 2⁻⁹ of 1 would be 1 in bfloat16, as autocast has coordinates.
        """
        exact = gains.to(torch.promote_types(gains.dtype, dtype)) - self.neutral
        return self.spread(exact.to(dtype))

    def change(self, coordinates: Tensor, gains: Tensor, room: Tensor | None = None) -> Tensor:
        """Δc (B, K), of gains (n,) or a row per sample (B, ..., n), in `room` if given."""
        offsets = self.offsets(gains, coordinates.dtype)
        return torch.mul(self.factors(coordinates), offsets, out=room)

    def combined(self, gains: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """neutral + Σ w_i (p_i − neutral), (n,): see `ResiDualModel.add_weighted_adapter`."""
        stack = torch.stack([tensor.detach().double() for tensor in gains])
        factors = torch.tensor([float(weight) for weight in weights]).to(stack)
        return (self.neutral + factors @ (stack - self.neutral)).to(gains[0].dtype)

    def first(self, spread: float = 0.0, seed: int | None = None) -> Tensor:
        """What they begin with, (n,), float32: `start`, or draws from N(start, spread²)."""
        size = self.number
        same = torch.full((size,), self.start, dtype=torch.float32, device="cpu")
        if not spread:
            return same
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        drawn = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        return same + spread * drawn

    def map(self, function: Callable[[Tensor], Tensor]) -> "Gains":
        """Apply a function, such as a move to another device, to its tensor."""
        return replace(self, unit_of=function(self.unit_of))


class UnitGains(Gains):
    """One gain per unit, on the whole of what it contributes."""

    whole = True

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.counts)

    def spread(self, values: Tensor) -> Tensor:
        """One number per unit (..., U) -> one per component (..., K)."""
        return values.index_select(-1, self.unit_of)

    def gather(self, values: Tensor) -> Tensor:
        """Sums over each unit's components, (K,) -> (U,)."""
        return values.new_zeros(self.number).index_add(0, self.unit_of, values)

    def split(self, gains: Tensor) -> tuple[Tensor, ...]:
        """The gain of each unit."""
        return gains.split(1)


KINDS: dict[str, type[Gains]] = {"component": Gains, "unit": UnitGains}
"""By what `ResiDualConfig.granularity` calls them."""
