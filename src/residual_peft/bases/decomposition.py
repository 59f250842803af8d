"""One forward pass -> what every unit wrote to the readout, and the proof that it is all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.registry import find_tower
from ..towers.taps import (
    CAPTURE_ATTRIBUTE,
    Capture,
    Tap,
    capture_of,
    install_taps,
    tapped,
)
from ..towers.units import Unit

__all__ = [
    "CAPTURE_ATTRIBUTE",
    "Capture",
    "Decomposition",
    "Tap",
    "batch_size",
    "capture_of",
    "check_exact",
    "check_pixels",
    "checked_capture",
    "checked_inputs",
    "contributions",
    "decompose",
    "evaluating",
    "head_inputs",
    "install_taps",
    "named_inputs",
    "read_tokens",
    "run_tower",
    "tapped",
    "unadapted",
]

OPTIONS = ("interpolate_pos_encoding",)  # of a forward pass, beside its tensors


@contextmanager
def unadapted(model: nn.Module) -> Iterator[None]:
    """Run a model without its adapters, dropout off, while the block runs.

    Merged adapters are part of the weights and stay. Not for a model that other threads are using:
    they would lose their adapters for as long.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # not at the top: `registration`

    adapted = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and not (module.disable_adapters or module.merged)
    ]
    for module in adapted:
        # not enable_adapters(False): that would also switch requires_grad, and not switch it back
        module._disable_adapters = True
    try:
        with evaluating(model):
            yield
    finally:
        for module in adapted:
            module._disable_adapters = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off while the block runs; a model in eval mode, which threads may share, is left."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run_tower(
    model: nn.Module, inputs: Any, *, anatomy: TowerAnatomy | None = None, **options: Any
) -> Tensor:
    """Run the model's own readout, unnormalized and with its adapters: (B, d).

    Args:
        model: the model.
        inputs: `pixel_values` (B, C, H, W), `input_ids` (B, T) of a text tower, or a mapping that
            holds what the tower takes (`TowerAnatomy.inputs`).
        anatomy: which of its towers and readouts; None what its adapter adapts, or the image tower.
        options: for the model's forward, such as `interpolate_pos_encoding=True`.

    Raises:
        ResiDualError: images of a size that the model does not take.
    """
    anatomy = find_tower(model) if anatomy is None else anatomy
    given = {**named_inputs(anatomy, inputs), **options}
    try:
        return (anatomy.read or _own_readout)(anatomy, given)
    except ValueError as error:
        if "image size" not in str(error):
            raise
        height, width = given["pixel_values"].shape[-2:]
        raise ResiDualError(
            f"this model does not take images of {height} x {width} pixels ({error}): prepare them "
            "with its own image processor, or set crop_size in preprocessor_config.json to its "
            "image_size."
        ) from error


def _own_readout(anatomy: TowerAnatomy, given: Mapping[str, Any]) -> Tensor:
    """Read from the tower's tokens, by `get_image_features`, or from the output of the model."""
    model: Any = anatomy.model
    if anatomy.reads_tokens:
        tokens = cast(Any, anatomy.tower)(**given, return_dict=True).last_hidden_state
        return read_tokens(anatomy, tokens, given)
    features: Any = getattr(model, f"get_{anatomy.side}_features", model)
    output = features(**given, return_dict=True)
    if features is not model:
        return output if isinstance(output, Tensor) else output.pooler_output
    name = "pooler_output" if anatomy.projection is None else f"{anatomy.side}_embeds"
    found: Tensor | None = getattr(output, name, None)
    return output.pooler_output if found is None else found


def read_tokens(anatomy: TowerAnatomy, tokens: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The readout (B, d) that the normed tokens (B, T, d) hold."""
    return anatomy.readout.read(tokens, anatomy.readout.locate((), given))


def named_inputs(anatomy: TowerAnatomy, batch: Any) -> dict[str, Any]:
    """What a tower takes of a batch: of a mapping its `inputs`, a tensor as the first of them.

    A mapping may also say `interpolate_pos_encoding`: images of another size than the model's.

    Raises:
        ResiDualError: the batch is neither, or lacks the first.
    """
    first = anatomy.inputs[0]
    if isinstance(batch, Mapping):
        found = {name: batch[name] for name in anatomy.inputs if batch.get(name) is not None}
        if first not in found:
            mend = "image processor" if anatomy.side == "image" else "tokenizer"
            raise ResiDualError(
                f"a batch holds {sorted(map(str, batch))} and no {first!r}: run the "
                f"{anatomy.side}s through the model's {mend}."
            )
        return found | {name: batch[name] for name in OPTIONS if batch.get(name)}
    if not isinstance(batch, Tensor):
        raise ResiDualError(
            f"wanted {first} as a tensor, or a mapping that holds it, got a {type(batch).__name__}."
        )
    return {first: batch}


def checked_inputs(anatomy: TowerAnatomy, batch: Any) -> dict[str, Any]:
    """The same on the tower's device, refused where it is not as it should be.

    Raises:
        ResiDualError: as `named_inputs`; pixels that are not finite, or of another shape or kind.
    """
    given = named_inputs(anatomy, batch)
    first = given[anatomy.inputs[0]]
    if anatomy.side == "text":
        if not isinstance(first, Tensor) or first.ndim != 2 or first.is_floating_point():
            raise ResiDualError(
                "wanted input_ids as whole numbers of shape (texts, tokens), got "
                f"{getattr(first, 'dtype', type(first).__name__)} of shape "
                f"{tuple(getattr(first, 'shape', ()))}: run the texts through the tokenizer with "
                'padding=True and return_tensors="pt".'
            )
    else:
        check_pixels(first, patches="spatial_shapes" in anatomy.inputs)
    device = anatomy.layers[0].output_projection.weight.device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def batch_size(inputs: Mapping[str, Any]) -> int:
    """The number of samples in what `checked_inputs` gave."""
    return len(next(iter(inputs.values())))


@dataclass(frozen=True)
class Decomposition:
    """`contributions.sum(1) + bias == readout`, each unit's share in what the model said."""

    units: list[Unit]
    contributions: Tensor  # (B, U, d)
    bias: Tensor  # (d,)
    readout: Tensor  # (B, d)


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
    """Run the unadapted model once: what every unit wrote, and the readout (B, d), checked.

    Raises:
        ResiDualError: as `decompose`.
    """
    inputs = checked_inputs(anatomy, batch)
    with torch.no_grad(), unadapted(model), tapped(anatomy, layers=True) as tap:
        readout = run_tower(model, inputs, anatomy=anatomy, **options)
        capture = tap.take()
    check_exact(anatomy, capture, readout)
    return capture, readout


def check_pixels(pixel_values: Tensor, *, patches: bool = False) -> None:
    """Refuse pixels that are not a (B, C, H, W) floating point tensor of finite numbers.

    With `patches` wanted cut up, (B, N, C·p·p).

    Raises:
        ResiDualError: names the images of the batch that are at fault.
    """
    kind = "patches, values" if patches else "channels, height, width"
    if not isinstance(pixel_values, Tensor):
        raise ResiDualError(
            f"wanted pixel_values as a tensor (images, {kind}), got "
            f"{type(pixel_values).__name__}: run the images through the model's image processor."
        )
    if (
        pixel_values.ndim != (3 if patches else 4)
        or not pixel_values.is_floating_point()
        or not len(pixel_values)
    ):
        raise ResiDualError(
            f"wanted pixel_values as floats of shape (images, {kind}), got "
            f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}: run the images through "
            "the model's image processor."
        )
    finite = pixel_values.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ResiDualError(
            f"pixel_values hold NaN or infinite values in {len(bad)} of {len(finite)} images of "
            f"the batch (first: image {bad[0]}); look at how they were decoded and normalized."
        )


def contributions(anatomy: TowerAnatomy, capture: Capture, units: list[Unit]) -> Tensor:
    """x_u = R u / σ of each unit, (B, U, d), float64: method.md, section 1.

    `output` stands for the readout itself, P β included: y = R h / σ + P β.
    """
    matrix = anatomy.readout_matrix()
    streams = _Streams(anatomy, capture)
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
            part = streams.scaled(unit) @ matrix.T
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
    seen = capture.heads[layer]
    assert seen is not None
    totals = anatomy.float64(capture.totals(anatomy.final_norm.eps))  # (B, J)
    heads = capture.scaled(anatomy.float64(seen), totals).unflatten(2, (anatomy.num_heads, -1))
    inside = heads.transpose(1, 2).flatten(2)  # (B, H, J·e)
    return torch.cat([inside, totals[:, None].expand(-1, anatomy.num_heads, -1)], dim=2)


class _Streams:
    """What each unit wrote to the stream, (B, D) or pooled (B, J, D) in float64, from a capture."""

    def __init__(self, anatomy: TowerAnatomy, capture: Capture) -> None:
        self.anatomy, self.capture = anatomy, capture
        self.totals = anatomy.float64(capture.totals(anatomy.final_norm.eps))

    def of(self, unit: Unit) -> Tensor:
        """Return what embed, an MLP or output (the whole stream) wrote."""
        tensor = {"embed": self.capture.embed, "output": self.capture.stream}.get(unit.kind)
        if unit.kind != "mlp":
            assert tensor is not None
            return self.anatomy.float64(tensor)
        assert unit.layer is not None
        tensor = self.capture.mlps[unit.layer]
        scale = self.anatomy.layers[unit.layer].mlp_scale
        assert tensor is not None
        written = self.anatomy.float64(tensor)
        return written if scale is None else written * self.anatomy.float64(scale)

    def scaled(self, unit: Unit) -> Tensor:
        """Return the same as it enters the readout's map: (B, J·D)."""
        return self.readable(self.of(unit))

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
        seen = self.capture.heads[layer]
        assert seen is not None
        part = self.anatomy.layers[layer]
        written = self.anatomy.float64(seen) @ self.anatomy.float64(part.output_projection.weight).T
        if part.output_projection.bias is not None:
            bias = self.anatomy.float64(part.output_projection.bias)
            pooled = self.capture.pooled is not None
            written = written + (self.totals[:, :, None] * bias if pooled else bias)
        scale = part.attention_scale
        return written if scale is None else written * self.anatomy.float64(scale)


def check_exact(anatomy: TowerAnatomy, capture: Capture, readout: Tensor) -> None:
    """Check that the units sum to the stream, layer by layer, and to the model's own readout.

    Each block's output is compared with embed + Σ of what the units up to it wrote, relative to the
    larger of the stream and the largest term: rounding is proportional to the terms, not to what is
    left when they cancel.

    Raises:
        ResiDualError: names the first layer whose sum leaves the stream, or says that the stream is
            whole and the readout differs.
    """
    streams = _Streams(anatomy, capture)
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
    where: str, summed: Tensor, seen: Tensor, terms: Sequence[Tensor], tolerance: float
) -> None:
    """Compare a sum of terms (B, n) with what the model computed, sample by sample."""
    if not bool(seen.isfinite().all() and summed.isfinite().all()):
        raise ResiDualError(
            f"the model computes NaN or infinite values, first seen at {where}: load it in float32 "
            "or bfloat16, and look at its weights and at the images."
        )
    error = (summed - seen).flatten(1).norm(dim=1)
    scale = torch.stack([seen, *terms]).flatten(2).norm(dim=2).amax(0)
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
    seen = [readout, capture.stream, *capture.heads, *capture.mlps]
    dtypes = {tensor.dtype for tensor in seen if tensor is not None}
    eps = max(capture.eps, *(torch.finfo(dtype).eps for dtype in dtypes))
    if readout.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        eps = max(eps, 2**-10)  # products are rounded to ten bits
    if eps <= torch.finfo(torch.float64).eps:
        return 1e-10
    if eps <= torch.finfo(torch.float32).eps:
        return 1e-5
    return float(4 * eps / 2 * (2 * depth + 1) ** 0.5)
