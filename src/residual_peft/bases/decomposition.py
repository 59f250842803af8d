"""One forward pass -> what every unit wrote to the readout, and the proof that it is all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.registry import find_tower
from ..towers.running import checked_inputs, run_tower, unadapted
from ..towers.taps import tapped
from ..towers.units import Unit
from .exactness import Streams, check_exact


@dataclass(frozen=True)
class Decomposition:
    """`contributions.sum(1) + bias == readout`, each unit's share in what the model said.

    Attributes:
        units: U of them, in the order of the tower.
        contributions: (B, U, d).
        bias: (d,).
        readout: (B, d).
    """

    units: list[Unit]
    contributions: Tensor
    bias: Tensor
    readout: Tensor


def decompose(
    model: nn.Module,
    pixel_values: Any,
    *,
    side: str | None = None,
    readout: str | None = None,
    **options: Any,
) -> Decomposition:
    """Split the readout of the unadapted model into the contributions of its units.

    Returned in float32 or, for a float64 model, in float64; summed in float64 inside. The sum is
    checked against the model's own output on every call.

    Args:
        model: the model.
        pixel_values: (B, C, H, W), or a mapping of what the tower takes; for a text tower
            `input_ids` (B, T) or a mapping that holds them.
        side: which tower, as `find_tower`.
        readout: which readout, as `find_tower`.
        options: for the model's forward, such as `interpolate_pos_encoding=True`.

    Raises:
        ResiDualError: unknown architecture, pixels that are not finite, or a sum that leaves the
            model's own output (the message names the layer).
    """
    anatomy = find_tower(model, side, readout)
    capture, found = checked_capture(model, anatomy, pixel_values, **options)
    units = anatomy.units()
    parts = contributions(anatomy, capture, units)
    dtype = torch.promote_types(found.dtype, torch.float32)
    return Decomposition(
        units=units,
        contributions=parts.to(found.device, dtype),
        bias=anatomy.readout_bias().to(found.device, dtype),
        readout=found.detach().to(dtype),
    )


def checked_capture(
    model: nn.Module, anatomy: TowerAnatomy, batch: Any, **options: Any
) -> tuple[Capture, Tensor]:
    """Run the unadapted model once: what every unit wrote, and the readout (B, d), checked."""
    inputs = checked_inputs(anatomy, batch)
    with torch.no_grad(), unadapted(model), tapped(anatomy, layers=True) as tap:
        readout = run_tower(model, inputs, anatomy=anatomy, **options)
        capture = tap.take()
    check_exact(anatomy, capture, readout)
    return capture, readout


def contributions(anatomy: TowerAnatomy, capture: Capture, units: list[Unit]) -> Tensor:
    """x_u = R u / σ of each unit, (B, U, d), float64: method.md, section 1.

    `output` stands for the readout itself, P β included: y = R h / σ + P β.
    """
    matrix = anatomy.readout_matrix()
    streams = Streams(anatomy, capture)
    parts: list[Tensor] = []
    heads: dict[int, Tensor] = {}
    for unit in units:
        if unit.kind == "head":
            assert unit.layer is not None
            if unit.layer not in heads:
                heads = {unit.layer: head_inputs(anatomy, capture, unit.layer)}
                factor = anatomy.head_factor(unit.layer, matrix)
            parts.append(heads[unit.layer][:, unit.head] @ factor[unit.head].T)
        elif unit.kind == "pooler":
            parts.append(streams.pooler())
        else:
            part = streams.readable(streams.of(unit)) @ matrix.T
            if unit.kind in ("embed", "output"):
                part = part + streams.constant()
            if unit.kind == "output":
                part = part + anatomy.readout_bias() + streams.pooler()
            parts.append(part)
    return torch.stack(parts, dim=1)


def head_inputs(anatomy: TowerAnatomy, capture: Capture, layer: int) -> Tensor:
    """ẑ = [z/σ ; 1/σ] of every head of a layer: (B, H, e + 1), float64.

    With J pools all z_j come first, then all weights: (B, H, J·e + J).
    """
    totals = anatomy.float64(capture.totals(anatomy.final_norm.eps))  # (B, J)
    heads = capture.scaled(anatomy.float64(capture.of(Unit("head", layer, 0))), totals).unflatten(
        2, (anatomy.num_heads, -1)
    )
    inside = heads.transpose(1, 2).flatten(2)  # (B, H, J·e)
    return torch.cat([inside, totals[:, None].expand(-1, anatomy.num_heads, -1)], dim=2)
