"""A class head in fewer bytes: half precision, 8 bits, low rank."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import ResiDualError
from .head import ClassHead

EIGHT = 127
_LARGEST_SCALE = 2.0**120
"""Of an evened row: finite in float32, and so it is times `EIGHT`."""


@dataclass(frozen=True)
class LowRankHead:
    """A class head whose V is `left @ right`."""

    # all but V, which has one column per dimension of the scores: V is `left` (K, r)
    head: ClassHead
    right: Tensor  # (r, C)
    offset: Tensor  # m (C,)

    @property
    def parameter_count(self) -> int:
        """Numbers kept of what was trained."""
        return self.head.weights.numel() + self.right.numel() + self.offset.numel() + 2

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """As those of `expanded`, in (K + C) r products an image."""
        inner = replace(self.head, text_weight=0.0, temperature=1.0).scores(features)
        return self.head.with_text(inner @ self.right + self.offset, zero_shot)

    def expanded(self) -> ClassHead:
        """The same as a plain head."""
        return replace(self.head, weights=self.head.weights @ self.right, offset=self.offset)

    def state(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """What is saved: the factors in `dtype`, the rest in float32."""
        right, offset = self.right.detach().cpu(), self.offset.detach().cpu()
        return self.head.state(dtype) | {"right": right.to(dtype), "offset": offset.float()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "LowRankHead":
        """The head that `state` was taken of, in float32."""
        missing = {"weights", "right", "offset"} - set(state)
        if missing:
            raise ResiDualError(
                "wanted the two factors of a class head, weights and right, and its offset, got "
                f"none of {', '.join(sorted(missing))}."
            )
        rest = {name: t.float() for name, t in state.items() if name != "right"}
        right, offset = state["right"].float(), rest["offset"]
        rank = rest["weights"].shape[1] if rest["weights"].ndim == 2 else -1
        if right.shape != (rank, len(offset)) or not torch.isfinite(right).all():
            raise ResiDualError(
                f"wanted a second factor {(rank, len(offset))} of finite numbers, got "
                f"{tuple(right.shape)}."
            )
        rest["offset"] = torch.zeros(rank)
        return cls(ClassHead.from_state(rest), right, offset)


def low_rank(head: ClassHead, features: Tensor | None, rank: int) -> LowRankHead:
    """The head of rank r, or of all there is, whose scores are nearest to its own on given images.

    With F (N, C) the centred scores and W their first right singular vectors, V̂ = V W Wᵀ: by
    Eckart and Young no V̂ of that rank comes nearer to F (reduced-rank regression; Mukherjee & Zhu
    2011). On the images it was fitted on, that is what the fit cares about most. Without features
    of images of all its classes, they are taken to be uncorrelated, as those of one unit are, with
    scales of p = ½.
    """
    if rank < 1:
        raise ResiDualError(f"wanted a rank of 1 or more, got {rank}.")
    exact = head.to(torch.float64)
    if features is None:
        scores, centre = exact.weights * exact.scale.unsqueeze(1), exact.offset
        right = torch.linalg.eigh(scores.mT @ scores).eigenvectors.mT.flip(0)[:rank]
    else:
        scores = exact.scores(features.cpu())
        centre = scores.mean(0)
        right = torch.linalg.svd(scores - centre, full_matrices=False).Vh[:rank]
    gone = centre - exact.offset
    offset = exact.offset + gone - (gone @ right.mT) @ right
    zeros = torch.zeros(len(right), dtype=torch.float64)
    inner = replace(exact, weights=exact.weights @ right.mT, offset=zeros)
    return LowRankHead(inner, right, offset)


def evened(head: ClassHead) -> ClassHead:
    """The same logits with a largest weight of 1 in each row of V: nothing is lost in float16.

    The size of a row goes into its scale; rows of zeros stay. Rows near 0 beside their scale, such
    as 1e-40, stay below 1: they say nothing, and their scales would be infinite in float32.
    """
    largest = head.weights.abs().amax(1)
    size = torch.maximum(largest, head.scale / _LARGEST_SCALE)
    size = torch.where(largest > 0, size, torch.ones_like(size))
    # of zeros any scale is right, and that of 1 does not grow when it is saved again
    scale = torch.where(largest > 0, head.scale / size, torch.ones_like(size))
    return replace(head, weights=head.weights / size.unsqueeze(1), scale=scale)


def eight_bits(head: ClassHead) -> dict[str, Tensor]:
    """What is saved of a head with V in whole numbers from -127 to 127, a scale for each row.

    Off by 1/254 of its row's largest weight at most, and not twice in the same direction: of a sum
    over thousands of rows little is left (`benchmarks/head_bytes.py`).
    """
    state = evened(head).state()
    state["weights"] = (EIGHT * state["weights"]).round().to(torch.int8)
    return state | {"scale": state["scale"] * EIGHT}


def within(head: ClassHead, features: Tensor | None, budget: int) -> dict[str, Tensor]:
    """What to save of a head in at most so many bytes, losing as little as that allows.

    In float32 where that fits; else V in float16, of which no logit notices anything (rows evened);
    else in 8 bits; else of the highest rank that fits, in 8 bits, for `features` as in `low_rank`;
    refused where not even rank 1 fits. `head_from_state` reads all.
    """
    state = head.state()
    if bytes_of(state) <= budget:
        return state
    for state in (evened(head).state(torch.float16), eight_bits(head)):
        if bytes_of(state) <= budget:
            return state
    columns, classes = head.weights.shape
    rest = 4 * (2 * columns + classes + 2)
    rank = (budget - rest) // (columns + 2 * classes)
    if rank < 1:
        raise ResiDualError(
            f"wanted a class head of {columns} features and {classes} classes in {budget:,} bytes, "
            f"which takes {rest + columns + 2 * classes:,} or more: allow that, or take fewer "
            "components per unit."
        )
    small = low_rank(head, features, rank)
    factors = small.state(torch.float16)
    return eight_bits(small.head) | {name: factors[name] for name in ("right", "offset")}


def head_from_state(state: Mapping[str, Tensor]) -> "ClassHead | LowRankHead":
    """The head that was saved, whichever kind it is."""
    return LowRankHead.from_state(state) if "right" in state else ClassHead.from_state(state)


def bytes_of(state: Mapping[str, Tensor]) -> int:
    """Of all tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
