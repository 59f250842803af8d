"""From a capture to the adapted readout: pure functions of tensors, shared by every way to train.

With c = Φ_u (x_u − μ_u) over the adapted units, and λ the gains,
`y' = base + (c ⊙ (λ − neutral)) Φ`, where `base` does not depend on the gains: y for
`remainder="keep"` (neutral 1) and zero for "drop" (neutral 0), plus the means that are added or
taken away (`method.md`, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor

from ...towers.anatomy import TowerAnatomy
from ...towers.captures import Capture
from ...towers.units import Unit
from ..gains import KINDS
from ..state import AdapterState, Settings


@dataclass(frozen=True)
class ReadoutSettings(Settings):
    """What one adapter adapts, and how: the part of its state that is no tensor."""

    units: tuple[Unit, ...]
    keep: bool
    restore_mean: bool

    @property
    def neutral(self) -> float:
        """The gain at which a component adds nothing to `base`."""
        return super().neutral if self.keep else 0.0

    @property
    def per_unit(self) -> bool:
        """Whether gains act on whole contributions, one per unit."""
        return KINDS[self.kind].whole

    @property
    def digested(self) -> str:
        """What digests on disk were taken of from the first release on, word for word."""
        return (
            f"Settings(units={self.units!r}, keep={self.keep!r}, "
            f"restore_mean={self.restore_mean!r}, per_unit={self.per_unit!r})"
        )


@dataclass(frozen=True)
class StoredBasis:
    """The tensors of one adapter's basis as they are kept and stored: see `head_space`.

    U units, of which some are heads, K components; w = e + 1, or d where that is less.
    """

    head_components: Tensor  # G of the heads (K_heads, w)
    head_means: Tensor  # m of the heads (U_heads, w)
    components: Tensor  # Φ of the other units (K_others, d)
    means: Tensor  # μ of the other units (U_others, d)
    eigenvalues: Tensor  # (K,)
    total_variance: Tensor  # (U,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in this order."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class ReadoutState(AdapterState):
    """All that leads from a capture to y' for one adapter. U units, K components, d readout width.

    With one gain per unit the directions Φ span all that the unit can write, so that
    `Φ_uᵀ Φ_u x = x`, and every component of a unit shares its gain.
    """

    settings: ReadoutSettings
    means: Tensor  # μ (U, d)
    shift: Tensor  # Φ_u μ_u, for the output Φ_u (μ_u − P β) (K,)
    constant: Tensor  # the means that are added or taken away, whatever the gains (d,)
    head_maps: Tensor  # A_u = Φ_u B_u (heads, k_max, J (e + 1)), rows of zeros below k_u
    # where each adapted head lies among all heads of the adapted layers (heads,)
    head_index: Tensor
    order: Tensor  # where in [heads' padded components, the others'] each component lies (K,)
    readout_matrix: Tensor  # R (d, J·D), or empty where every adapted unit is a head
    mlp_scales: Tensor  # layer scale of every MLP (L, D), or empty where there is none
    constant_map: Tensor  # of what is part of embed beside its R u/σ (d,), or empty
    num_heads: int
    pools: int  # J
    eps: float

    @property
    def counts(self) -> tuple[int, ...]:
        """k_u of each unit."""
        return self.gains.counts


def derive(
    anatomy: TowerAnatomy,
    settings: ReadoutSettings,
    components: Tensor,
    means: Tensor,
    factors: dict[Unit, Tensor],
    dtype: torch.dtype,
) -> ReadoutState:
    """Prepare one adapter for a tower, in float64, and cast to `dtype`.

    Of Φ (K, d) of all units, one below the other (ignored with one gain per unit), μ (U, d), and
    the `factors` B_u (d, e + 1) of every head among the units.
    """
    matrix = anatomy.readout_matrix()
    means = anatomy.float64(means)
    if settings.per_unit:
        blocks = [_whole_space(anatomy, unit, factors) for unit in settings.units]
    else:
        blocks = list(anatomy.float64(components).split(list(settings.counts)))
    counts = [len(block) for block in blocks]
    gains = KINDS[settings.kind].of(counts, settings.neutral)
    # coordinates are taken of R u/σ; the readout has P β on top of that
    bias = anatomy.readout_bias()
    shift = [
        block @ (mean - bias if unit.kind == "output" else mean)
        for unit, block, mean in zip(settings.units, blocks, means, strict=True)
    ]
    maps = [
        block @ factors[unit]
        for unit, block in zip(settings.units, blocks, strict=True)
        if unit.kind == "head"
    ]
    dense = any(unit.kind != "head" for unit in settings.units)
    device = anatomy.layers[0].output_projection.weight.device
    total = means.sum(0)
    empty, shift_of_embed = matrix.new_zeros(0), anatomy.constant_map()
    return ReadoutState(
        settings=settings,
        gains=gains.map(lambda tensor: tensor.to(device)),
        directions=torch.cat(blocks).to(device, dtype),
        means=means.to(device, dtype),
        shift=torch.cat(shift).to(device, dtype),
        constant=_constant(settings, total).to(device, dtype),
        head_maps=_pad(maps, anatomy.factor_width).to(device, dtype),
        head_index=_head_index(settings.units, anatomy.num_heads).to(device),
        order=_order(settings.units, counts).to(device),
        readout_matrix=(matrix if dense else empty).to(device, dtype),
        mlp_scales=_mlp_scales(anatomy).to(device, dtype),
        constant_map=(empty if shift_of_embed is None else shift_of_embed).to(device, dtype),
        pools=anatomy.pools,
        num_heads=anatomy.num_heads,
        eps=float(anatomy.final_norm.eps),
    )


@torch.no_grad()
def coordinates_of(state: ReadoutState, capture: Capture) -> Tensor:
    """c = Φ_u (x_u − μ_u) over all adapted units: (B, K), computed without forming a head's x_u.

    Heads: c_u = A_u ẑ − Φ_u μ_u with ẑ = [z/σ ; 1/σ]; the others: x_u = R u/σ first.
    """
    totals = capture.totals(state.eps).to(state.directions.dtype)
    parts = [_head_coordinates(state, capture, totals)]
    ends = accumulate(state.counts)
    for unit, count, end in zip(state.settings.units, state.counts, ends, strict=True):
        if unit.kind != "head":
            contribution = _contribution(state, capture, unit, totals)
            parts.append(contribution @ state.directions[end - count : end].T)
    return torch.cat(parts, dim=1).index_select(1, state.order) - state.shift


def base_of(state: ReadoutState, readout: Tensor) -> Tensor:
    """The part of y' that does not depend on the gains, (B, d)."""
    kept = readout.to(state.directions.dtype)
    return (kept if state.settings.keep else torch.zeros_like(kept)) + state.constant


def compose(
    state: ReadoutState,
    base: Tensor,
    coordinates: Tensor,
    gains: Tensor,
    room: Tensor | None = None,
) -> Tensor:
    """y' = base + Δc Φ with Δc = c ⊙ (λ − neutral): (B, d), affine in the gains.

    Of `base_of` the readout (B, d), `coordinates_of` the capture (B, K) and λ, one per component
    (K,) or per unit (U,), or a row of them per sample (B, ...). `room` takes Δc where no gradient
    is due.
    """
    return base + state.gains.change(coordinates, gains, room) @ state.directions


def _whole_space(anatomy: TowerAnatomy, unit: Unit, factors: dict[Unit, Tensor]) -> Tensor:
    """Orthonormal rows that span all that a unit can contribute: (k, d)."""
    if unit.kind == "head":
        return torch.linalg.qr(factors[unit]).Q.T
    return torch.eye(anatomy.readout_width, dtype=torch.float64, device=anatomy.float64_device)


def _constant(settings: ReadoutSettings, total: Tensor) -> Tensor:
    """Σ μ_u as far as it is added to, or taken from, what `base_of` begins with.

    With one gain per unit and no means restored, whole contributions are scaled and no mean plays
    a part.
    """
    if settings.keep == settings.restore_mean or (settings.per_unit and not settings.restore_mean):
        return torch.zeros_like(total)
    return total if settings.restore_mean else -total


def _pad(maps: list[Tensor], width: int) -> Tensor:
    """Stack (k_u, e + 1) maps to (heads, k_max, e + 1)."""
    if not maps:
        return torch.zeros(0, 0, width)
    return torch.nn.utils.rnn.pad_sequence(maps, batch_first=True)


def _head_index(units: Sequence[Unit], num_heads: int) -> Tensor:
    heads = [(unit.layer, unit.head) for unit in units if unit.kind == "head"]
    layers = sorted({layer for layer, _ in heads if layer is not None})
    places = [
        layers.index(layer) * num_heads + (head or 0) for layer, head in heads if layer in layers
    ]
    return torch.tensor(places, dtype=torch.int64)


def _order(units: Sequence[Unit], counts: Sequence[int]) -> Tensor:
    """Where each component lies in [heads' padded components, the other units' components]."""
    heads = [count for unit, count in zip(units, counts, strict=True) if unit.kind == "head"]
    longest = max(heads, default=0)
    head, dense = 0, len(heads) * longest
    order: list[int] = []
    for unit, count in zip(units, counts, strict=True):
        start = head if unit.kind == "head" else dense
        order += range(start, start + count)
        if unit.kind == "head":
            head += longest
        else:
            dense += count
    return torch.tensor(order, dtype=torch.int64)


def _mlp_scales(anatomy: TowerAnatomy) -> Tensor:
    """Layer scale of every MLP (L, D), or empty where no layer has any."""
    scales = [layer.mlp_scale for layer in anatomy.layers]
    if all(scale is None for scale in scales):
        return torch.zeros(0)
    ones = torch.ones(anatomy.width, dtype=torch.float64, device=anatomy.float64_device)
    return torch.stack([ones if scale is None else anatomy.float64(scale) for scale in scales])


def _head_coordinates(state: ReadoutState, capture: Capture, totals: Tensor) -> Tensor:
    """A_u ẑ of every adapted head, padded: (B, heads · k_max)."""
    heads = [unit for unit in state.settings.units if unit.kind == "head"]
    layers = sorted({unit.layer for unit in heads if unit.layer is not None})
    if not heads:
        return totals.new_zeros(totals.shape[0], 0)  # not len: no constant for a tracer
    seen = [capture.of(Unit("head", layer, 0)) for layer in layers]
    inputs = torch.stack(seen, dim=-2).to(totals.dtype).unflatten(-1, (state.num_heads, -1))
    inputs = inputs.flatten(-3, -2)  # (B, heads, e), or pooled (B, J, heads, e)
    if len(heads) != inputs.shape[-2]:  # not all heads of these layers
        inputs = inputs.index_select(-2, state.head_index)
    if capture.pooled is None:
        inputs = inputs * totals[:, :, None]
    else:
        inputs = inputs.transpose(1, 2).flatten(2)  # (B, heads, J·e)
    weight, shift = state.head_maps.tensor_split([state.head_maps.shape[-1] - state.pools], dim=-1)
    found = torch.einsum("bhe,hke->bhk", inputs, weight)
    return (found + torch.einsum("bj,hkj->bhk", totals, shift)).flatten(1)


def _contribution(state: ReadoutState, capture: Capture, unit: Unit, totals: Tensor) -> Tensor:
    """x_u (B, d) of a unit that is no head; of output without P β."""
    dtype = totals.dtype
    seen = capture.of(unit)
    if unit.kind == "pooler":
        return seen.to(dtype)
    if unit.layer is not None and len(state.mlp_scales):
        seen = seen * state.mlp_scales[unit.layer]
    found = capture.scaled(seen, totals).flatten(1) @ state.readout_matrix.T
    if unit.kind == "mlp":
        return found
    if len(state.constant_map) and capture.constant is not None:
        found = found + capture.constant.to(dtype)[:, None] * state.constant_map
    if unit.kind == "output" and capture.pooler is not None:
        found = found + capture.pooler.to(dtype)
    return found
