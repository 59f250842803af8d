"""The proof that nothing was forgotten: what units wrote adds up to what the model computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.units import Unit


class Streams:
    """What each unit wrote to the stream, (B, D) or pooled (B, J, D) in float64, from a capture."""

    def __init__(self, anatomy: TowerAnatomy, capture: Capture) -> None:
        self.anatomy, self.capture = anatomy, capture
        self.totals = anatomy.float64(capture.totals(anatomy.final_norm.eps))

    def of(self, unit: Unit) -> Tensor:
        """Return what embed, an MLP or output (the whole stream) wrote."""
        written = self.anatomy.float64(self.capture.of(unit))
        scale = None if unit.layer is None else self.anatomy.layers[unit.layer].mlp_scale
        return written if scale is None else written * self.anatomy.float64(scale)

    def readable(self, written: Tensor) -> Tensor:
        """Give what was written its weight: (B, J·D)."""
        return self.capture.scaled(written, self.totals).flatten(1)

    def pooler(self) -> Tensor:
        """Return what the MLP after an attention pooling adds to the readout, or zeros: (B, d)."""
        if self.capture.pooler is None:
            return self.totals.new_zeros(len(self.totals), self.anatomy.readout_width)
        return self.anatomy.float64(self.capture.pooler)

    def constant(self) -> Tensor:
        """Return what no unit writes and yet is not the same for all samples: (B, d) or (1,)."""
        shift = self.anatomy.constant_map()
        if shift is None or self.capture.constant is None:
            return self.totals.new_zeros(1)
        return self.anatomy.float64(self.capture.constant)[:, None] * shift

    def attention(self, layer: int) -> Tensor:
        """Return what all heads of a layer wrote together."""
        part, float64 = self.anatomy.layers[layer], self.anatomy.float64
        seen = float64(self.capture.of(Unit("head", layer, 0)))
        written = seen @ float64(part.output_projection.weight).T
        if part.output_projection.bias is not None:
            bias = float64(part.output_projection.bias)
            pooled = self.capture.pooled is not None
            written = written + (self.totals[:, :, None] * bias if pooled else bias)
        scale = part.attention_scale
        return written if scale is None else written * float64(scale)


def check_exact(anatomy: TowerAnatomy, capture: Capture, readout: Tensor) -> None:
    """Check that the units sum to the stream, layer by layer, and to the model's own readout.

    Each block's output is compared with embed + Σ of what the units up to it wrote, relative to the
    larger of the stream and the largest term: rounding is proportional to the terms, not to what is
    left when they cancel. The first layer whose sum leaves the stream is named, else the readout.
    """
    streams = Streams(anatomy, capture)
    tolerance = _tolerance(capture, readout, len(anatomy.layers))
    terms = [streams.of(Unit("embed"))]
    total = terms[0]
    _check_close("the embedding", total, total, terms, tolerance)
    for index, output in enumerate(capture.layers):
        terms += [streams.attention(index), streams.of(Unit("mlp", index))]
        total = total + terms[-2] + terms[-1]
        if output is None:  # not tapped; then the first to differ is not known
            continue
        _check_close(f"layer {index}", total, anatomy.float64(output), terms, tolerance)
    stream = streams.of(Unit("output"))
    _check_close("the final norm's input", total, stream, terms, tolerance)
    matrix = anatomy.readout_matrix()
    parts = [streams.readable(term) @ matrix.T for term in terms]
    parts += [streams.constant().expand_as(parts[0]), streams.pooler()]
    summed = streams.readable(total) @ matrix.T + parts[-2] + parts[-1] + anatomy.readout_bias()
    _check_close("the readout", summed, anatomy.float64(readout), parts, tolerance)


def _check_close(
    where: str, summed: Tensor, computed: Tensor, terms: Sequence[Tensor], tolerance: float
) -> None:
    """Compare a sum of terms (B, n) with what the model computed, sample by sample."""
    if not bool(computed.isfinite().all() and summed.isfinite().all()):
        raise ResiDualError(
            f"the model computes NaN or infinite values, first seen at {where}: load it in float32 "
            "or bfloat16, and look at its weights and at the images."
        )
    error = (summed - computed).flatten(1).norm(dim=1)
    scale = torch.stack([computed, *terms]).flatten(2).norm(dim=2).amax(0)
    worst = float((error / scale.clamp_min(torch.finfo(scale.dtype).tiny)).max())
    if worst > tolerance:
        raise ResiDualError(
            f"the units do not add up to the model's own output: at {where} their sum is off by "
            f"{worst:.1e} of its size, where {tolerance:.0e} is allowed. Something other than the "
            "plain blocks writes there: a hook, an adapter, or a changed forward. Take it off, or "
            "load the model afresh. (Hooks may change what heads and MLPs write: the input of an "
            "attention's output projection, the output of an MLP.)"
        )


def _tolerance(capture: Capture, readout: Tensor, depth: int) -> float:
    """The largest error that rounding explains in the lowest precision that was seen.

    float64 and float32 are fixed (1e-10, 1e-5). Below that the stream is rounded twice per layer,
    half an ulp each: errors add up like sqrt(2L) of those, and four times as much is allowed.
    """
    tensors = [readout, capture.stream, *capture.heads, *capture.mlps]
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    eps = max(capture.eps, *(torch.finfo(dtype).eps for dtype in dtypes))
    if readout.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        eps = max(eps, 2**-10)  # products are rounded to ten bits
    if eps <= torch.finfo(torch.float64).eps:
        return 1e-10
    if eps <= torch.finfo(torch.float32).eps:
        return 1e-5
    return float(4 * eps / 2 * (2 * depth + 1) ** 0.5)
