"""A class head: a linear map from coordinates to classes, beside the text's own logits.

And what each column says for a class: the logit of a head is a sum, and its shares are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import ResiDualError
from .left_out import LeftOut


class Scorer(Protocol):
    """What tells classes apart by the features of an image: a head, or any of its rivals."""

    @property
    def parameter_count(self) -> int:
        """How many numbers were trained."""
        ...

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Logits (M, C) from features (M, K) and, where it uses them, the text's logits (M, C)."""
        ...


@dataclass(frozen=True)
class ClassHead:
    """`a z + τ (((c − mean) / scale) V + m)`, z the zero-shot logits (`method.md`, section 8)."""

    mean: Tensor  # of the features it was fitted on, weighted as the images were (K,)
    scale: Tensor  # what each centred feature is divided by, the power p of its deviation (K,)
    weights: Tensor  # V (K, C)
    offset: Tensor  # m (C,)
    text_weight: float = 0.0  # a; 0 where no zero-shot logits were given
    temperature: float = 1.0  # τ, which multiplies

    def __post_init__(self) -> None:
        columns, classes = self.weights.shape if self.weights.ndim == 2 else (-1, -1)
        shapes = [tuple(t.shape) for t in (self.mean, self.scale, self.weights, self.offset)]
        if shapes != [(columns,), (columns,), (columns, classes), (classes,)]:
            raise ResiDualError(
                "wanted a class head's mean (K,), scale (K,), weights (K, C) and offset (C,), got "
                f"{', '.join(map(str, shapes))}: its parts are of different heads."
            )

    @property
    def class_count(self) -> int:
        """C."""
        return len(self.offset)

    @property
    def parameter_count(self) -> int:
        """V, m, a and τ; the means and scales are counted, not trained."""
        return self.weights.numel() + self.offset.numel() + 2

    def scores(self, features: Tensor) -> Tensor:
        """What the head itself says, `((c − mean) / scale) V + m`: (M, C), in the head's dtype."""
        columns = len(self.mean)
        if features.ndim != 2 or features.shape[1] != columns:
            raise ResiDualError(
                f"wanted the {columns} features of an image that this class head was fitted on, "
                f"(M, {columns}), got {tuple(features.shape)}: these are of another basis, or of "
                "other units."
            )
        centred = (features.to(self.mean) - self.mean) / self.scale
        return centred @ self.weights + self.offset

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Logits (M, C) of features (M, K) and z (M, C), in the head's dtype and on its device.

        Raises:
            ResiDualError: features of another number of columns; no zero-shot logits where the head
                weighs them, or of another shape.
        """
        return self.with_text(self.scores(features), zero_shot)

    def with_text(self, scores: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Logits from the head's own scores (M, C); raises as `logits`."""
        logits = self.temperature * scores
        if self.text_weight == 0:
            return logits
        why = f"this class head weighs {self.text_weight:.3g}"
        return logits + self.text_weight * text_of(logits, zero_shot, why)

    def to(self, where: torch.dtype | torch.device | str) -> "ClassHead":
        """The same in another dtype or on another device, as `Tensor.to`."""
        moved: dict[str, Any] = {name: t.to(where) for name, t in self._tensors().items()}
        return replace(self, **moved)

    def state(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """What is saved: plain tensors, V in `dtype`, the rest in float32, a and τ among them."""
        numbers = {name: torch.tensor(getattr(self, name)) for name in _NUMBERS}
        state = {name: t.detach().float().cpu() for name, t in (self._tensors() | numbers).items()}
        return state | {"weights": state["weights"].to(dtype)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "ClassHead":
        """The head that `state` was taken of, in float32."""
        wanted = {field.name for field in fields(cls)}
        if set(state) != wanted:
            raise ResiDualError(
                f"wanted a class head's tensors {', '.join(sorted(wanted))}, got "
                f"{', '.join(sorted(state)) or 'none'}."
            )
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise ResiDualError(f"wanted finite numbers in a class head, got others in {name}.")
            if name in _NUMBERS and tensor.numel() != 1:
                raise ResiDualError(
                    f"wanted one number as a class head's {name}, got {tuple(tensor.shape)}."
                )
        if (state["scale"] <= 0).any():
            raise ResiDualError("wanted a class head's scales above 0, got others.")
        parts: dict[str, Any] = {
            name: float(tensor) if name in _NUMBERS else tensor.float()
            for name, tensor in state.items()
        }
        return cls(**parts)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: part for name, part in vars(self).items() if name not in _NUMBERS}


_NUMBERS = ("text_weight", "temperature")


def text_of(
    scores: Tensor, zero_shot: Tensor | None, why: str = "this classifier was fitted with"
) -> Tensor:
    """Zero-shot logits in the form of scores (M, C); refused where there are none."""
    if zero_shot is None or zero_shot.shape != scores.shape:
        got = "none" if zero_shot is None else tuple(zero_shot.shape)
        raise ResiDualError(
            f"wanted zero-shot logits {tuple(scores.shape)}, which {why}, got {got}."
        )
    return zero_shot.to(scores)


@dataclass(frozen=True)
class FittedHead:
    """A class head, and what it says of each training image by a fit without it: a `Scorer`."""

    head: ClassHead
    left_out: LeftOut

    @property
    def parameter_count(self) -> int:
        """Numbers trained."""
        return self.head.parameter_count

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """As the head's, (M, K) and (M, C) -> (M, C)."""
        return self.head.logits(features, zero_shot)


def spread(head: ClassHead, columns: Tensor, count: int) -> ClassHead:
    """A head on some columns of `count` as one on all of them: the others weigh nothing."""
    if len(columns) == count:
        return head
    weights = head.weights.new_zeros(count, head.class_count)
    mean, scale = head.mean.new_zeros(count), head.scale.new_ones(count)
    weights[columns], mean[columns], scale[columns] = head.weights, head.mean, head.scale
    return replace(head, weights=weights, mean=mean, scale=scale)


def contrast(head: ClassHead, features: Tensor, this: int, other: int) -> Tensor:
    """What each column says for one class rather than another (M, K): `τ c̃_j (V_jk − V_jl)`.

    With `τ (m_k − m_l)` and the texts' part they sum to the difference of the classes' logits.
    """
    along = head.temperature * ((features.to(head.mean) - head.mean) / head.scale)
    return along * head.weights[:, this] - along * head.weights[:, other]


def by_unit(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum over the columns of each unit: (..., K) -> (..., U)."""
    if sum(counts) != values.shape[-1]:
        raise ResiDualError(
            f"wanted a count of columns for each unit that together are the {values.shape[-1]}, "
            f"got {sum(counts)}."
        )
    return torch.stack([part.sum(-1) for part in values.split(list(counts), -1)], -1)


def strongest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns that say most for (values (K,) above 0) and most against, `count` of each at most."""
    order = values.argsort(descending=True, stable=True)
    up = order[values[order] > 0][:count]
    order = order.flip(0)
    return up, order[values[order] < 0][:count]
