"""The tensors of a basis in stream mode: what is saved, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...towers.readouts import float64
from ..readout.head_space import polar_frames
from ..state import AdapterState, Settings
from ..values import check_directions, check_parts
from .basis import LinearBasis

STREAM_BASIS = tuple(
    f"residual_peft_{name}"
    for name in ("directions", "input_mean", "eigenvalues", "total_variance")
)


@dataclass(frozen=True)
class StreamSettings(Settings):
    """What one adapter does to one Linear: the part of its state that is no tensor."""

    # what a basis from the weights was made from; () from data or a file
    source: tuple[Any, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class StreamState(AdapterState):
    """What the forward needs of one adapter: H heads, e numbers each, K components, D outputs.

    It does not depend on what is merged at the moment.
    """

    maps: Tensor  # A_h = Φ_h W_h (H, max k, e), rows of zeros below k_h
    order: Tensor  # where each component lies among those of all heads, each padded (K,)
    mean: Tensor  # z̄ (H, e)


def tensors_of(basis: LinearBasis, weight: Tensor) -> list[Tensor]:
    """The tensors of `STREAM_BASIS` for a Linear with weight (D, n), float64.

    directions V (K, e): Φ_h as seen from the space of its head, Φ_h = V_h Q_hᵀ, where Q_h (D, e) is
    the orthonormal frame of W_h (`frames_of`); Φ (K, D) itself where there is no such frame;
    input_mean z̄ (n,), eigenvalues (K,), total_variance (H,).
    """
    frames = frames_of(weight, len(basis.heads))
    components = [head.components for head in basis.heads]
    if frames is not None:
        components = [phi.to(q) @ q for phi, q in zip(components, frames, strict=True)]
    return [
        torch.cat(components),
        basis.input_mean,
        torch.cat([head.eigenvalues for head in basis.heads]),
        torch.stack([head.total_variance for head in basis.heads]),
    ]


def derive(settings: StreamSettings, tensors: Sequence[Tensor], weight: Tensor) -> StreamState:
    """Derive an adapter's state, in the dtype of its tensors, from those of `STREAM_BASIS`."""
    (directions, input_mean), counts = tensors[:2], settings.counts
    frames, parts = frames_of(weight, len(counts)), _parts(weight, len(counts))
    blocks: Sequence[Tensor] = directions.to(parts).split(list(counts))
    if frames is not None:
        blocks = [v @ q.T for v, q in zip(blocks, frames, strict=True)]
    maps = [phi @ part for phi, part in zip(blocks, parts, strict=True)]
    longest = max(counts, default=0)
    places = [head * longest + k for head, count in enumerate(counts) for k in range(count)]
    return StreamState(
        gains=settings.gains.map(lambda tensor: tensor.to(directions.device)),
        directions=directions if frames is None else torch.cat(list(blocks)).to(directions),
        maps=nn.utils.rnn.pad_sequence(maps, batch_first=True).to(directions),
        order=torch.tensor(places, dtype=torch.int64, device="cpu").to(directions.device),
        mean=input_mean.view(len(counts), -1),
    )


def check_tensors(tensors: Sequence[Tensor], counts: Sequence[int], what: str) -> None:
    """Refuse tensors of `STREAM_BASIS` that hold what no basis has."""
    directions, input_mean, eigenvalues, total = tensors
    check_parts(input_mean, eigenvalues, total, what)
    names = [f"head {head}" if len(counts) > 1 else "a Linear" for head in range(len(counts))]
    parts = directions.split(list(counts)), eigenvalues.split(list(counts))
    check_directions(zip(names, *parts, strict=True), what)


def frames_of(weight: Tensor, heads: int) -> Tensor | None:
    """Q_h (H, D, e), the polar factor of each W_h; None for a single head, or where D ≤ e.

    Directions in it are D/e times smaller than in the stream; every machine finds the same.
    """
    parts = _parts(weight, heads)
    if heads == 1 or parts.shape[1] <= parts.shape[2]:
        return None
    return polar_frames(parts)


def _parts(weight: Tensor, heads: int) -> Tensor:
    """W_h of every head (H, D, e), float64."""
    return float64(weight).unflatten(1, (heads, -1)).transpose(0, 1)


def shapes_for(
    counts: Sequence[int], out_features: int, in_features: int
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the tensors of `STREAM_BASIS` for a Linear (D, n) and its heads' directions."""
    heads, total = len(counts), sum(counts)
    width = out_features if heads == 1 else min(out_features, in_features // heads)
    return ((total, width), (in_features,), (total,), (heads,))
