"""Where a tower keeps its parts, and the linear maps between them.

Everything below reads parts and sizes from the anatomy and knows no model; `registry` finds it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import ResiDualError
from .fused_attention import check_attention
from .readouts import FIRST_TOKEN, Readout
from .units import UNIT_KINDS, Unit


@dataclass(frozen=True)
class LayerAnatomy:
    """The parts of one transformer block."""

    module: nn.Module
    output_projection: nn.Linear
    mlp: nn.Module
    mlp_projection: nn.Linear  # the MLP's last linear map
    attention_scale: Tensor | None = None  # layer scale (D,), folded into the output projection
    mlp_scale: Tensor | None = None  # layer scale (D,)
    # where it computes with the output projection's weight and never calls it
    attention: nn.MultiheadAttention | None = None

    @property
    def tokens_first(self) -> bool:
        """Whether the block runs over (T, B, D), as a fused attention without batch_first wants."""
        return self.attention is not None and not self.attention.batch_first


@dataclass(frozen=True)
class ParameterProjection:
    """A projection that is no module but a parameter (D, d) of one; read anew, as it may move."""

    owner: nn.Module
    name: str
    bias = None

    @property
    def weight(self) -> Tensor:
        """The same as a Linear keeps it: (d, D)."""
        found: Tensor = getattr(self.owner, self.name)
        return found.T

    @property
    def out_features(self) -> int:
        """The width d of the readout."""
        return len(self.weight)


@dataclass(frozen=True)
class TowerAnatomy:
    """An image or text tower: modules with any PEFT wrapping taken off, sizes read from them.

    Symbols of `method.md`: L layers, H heads, e head_dim, D width, d readout_width; J pools, the
    weights that each token has in the readout (1 but for an attention pooling).
    """

    architecture: str
    model: nn.Module
    tower: nn.Module  # the module whose forward runs the stream
    embedding: nn.Module  # its output at the readout token is the stream's start
    layers: tuple[LayerAnatomy, ...]
    final_norm: nn.LayerNorm
    projection: nn.Linear | ParameterProjection | None
    projection_path: str  # in `model`, of the module whose output is the readout
    num_heads: int
    readout: Readout = FIRST_TOKEN  # how it is made of tokens
    reads_tokens: bool = False  # the readout is read from the tower's last_hidden_state
    outside: tuple[nn.Module, ...] = ()  # parts of the tower that its readout does not pass through
    side: str = "image"
    inputs: tuple[str, ...] = ("pixel_values",)  # of the model's forward; the first is a must
    read: "Callable[[TowerAnatomy, Mapping[str, Any]], Tensor] | None" = None  # inputs -> readout
    # tokens before the patches, of all that the final norm puts out; None where it sees one alone
    prefix_tokens: int | None = None
    mask: str | None = None  # the input that says which tokens are no padding
    whole: bool = False  # the module whose output is the readout is the tower itself
    # the named tensors of its fingerprint, where those are not the modules' own
    weights: "Callable[[TowerAnatomy], Mapping[str, Tensor]] | None" = None

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.final_norm.normalized_shape[0])

    @property
    def head_dim(self) -> int:
        """The width e of what one head hands to the output projection."""
        return self.layers[0].output_projection.in_features // self.num_heads

    @property
    def readout_width(self) -> int:
        """The width d of the readout."""
        return self.width if self.projection is None else self.projection.out_features

    @property
    def cuts_out(self) -> bool:
        """Whether what the projection gets is cut out of the final norm's output, a new tensor."""
        return self.projection is not None and self.prefix_tokens is not None

    @property
    def pools(self) -> int:
        """J, how many weights each token has in the readout."""
        return self.readout.count

    @property
    def factor_width(self) -> int:
        """J (e + 1), the dimensions that a head's contribution is a linear function of."""
        return self.pools * (self.head_dim + 1)

    def units(self, kinds: Iterable[str] = ("embed", "head", "mlp", "pooler")) -> list[Unit]:
        """List the units of the given kinds: embed, each layer's heads and MLP, pooler, output.

        Raises:
            ResiDualError: a kind is unknown.
        """
        kinds = tuple(kinds)
        if unknown := [kind for kind in kinds if kind not in UNIT_KINDS]:
            raise ResiDualError(
                f"unknown units {unknown}; the kinds are {', '.join(UNIT_KINDS)} (a tuple of them)."
            )
        units = [Unit("embed")]
        for layer in range(len(self.layers)):
            units += [Unit("head", layer, head) for head in range(self.num_heads)]
            units.append(Unit("mlp", layer))
        if self.readout.pooler is not None:
            units.append(Unit("pooler"))
        return [unit for unit in [*units, Unit("output")] if unit.kind in kinds]

    def writers(self, unit: Unit) -> list[Any]:
        """The modules that write a unit, the last linear map at the end; none of `output`."""
        if unit.layer is not None:
            layer = self.layers[unit.layer]
            mlp = [layer.mlp, layer.mlp_projection]
            return [layer.output_projection] if unit.kind == "head" else mlp
        if unit.kind == "pooler" and self.readout.pooler is not None:
            return [self.readout.pooler.mlp, self.readout.pooler.last]
        return [self.embedding] if unit.kind == "embed" else []

    def readout_matrix(self) -> Tensor:
        """R = P diag(γ) (I − 11ᵀ/D), shape (d, D), float64: method.md, section 1.

        With J pools, one such map for each, side by side: (d, J·D).
        """
        norm = self.final_norm
        maps = [self.float64(matrix) for matrix in self.readout.maps(self._output_map())]
        if norm.weight is not None:
            maps = [matrix * self.float64(norm.weight) for matrix in maps]
        return torch.cat([matrix - matrix.mean(1, keepdim=True) for matrix in maps], dim=1)

    def _output_map(self) -> Tensor:
        if self.projection is not None:
            return self.float64(self.projection.weight)
        return torch.eye(self.width, dtype=torch.float64, device=self.float64_device)

    def readout_bias(self) -> Tensor:
        """P β, and the projection's own bias where it has one: shape (d,), float64."""
        norm, projection = self.final_norm, self.projection
        beta = torch.zeros(self.width, dtype=torch.float64, device=self.float64_device)
        if norm.bias is not None:
            beta = self.float64(norm.bias)
        bias = self.float64(self.readout.bias(self._output_map(), beta))
        if projection is None or projection.bias is None:
            return bias
        return bias + self.float64(projection.bias)

    def constant_map(self) -> Tensor | None:
        """What `Capture.constant` of each sample is multiplied with (d,), float64, or None."""
        return self.readout.constant_map(self._output_map())

    def stream_weight(self, layer: int) -> tuple[Tensor, Tensor]:
        """W_{l,h} (H, D, e) and b_l (D,) of one layer, layer scale folded in, float64."""
        part = self.layers[layer]
        weight = self.float64(part.output_projection.weight)
        bias = torch.zeros(self.width, dtype=weight.dtype, device=weight.device)
        if part.output_projection.bias is not None:
            bias = self.float64(part.output_projection.bias)
        if part.attention_scale is not None:
            scale = self.float64(part.attention_scale)
            weight, bias = scale[:, None] * weight, scale * bias
        return weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1), bias

    def head_factor(self, layer: int, readout_matrix: Tensor | None = None) -> Tensor:
        """B_u = [R W_u, R b_l / H] of every head of a layer: (H, d, e + 1), float64.

        A head's contribution is B_u ẑ with ẑ = [z/σ ; 1/σ]: method.md, section 2. With J pools,
        B_u is (d, J·e + J), the maps of all z_j before those of all weights.
        `readout_matrix` saves computing R again.
        """
        readout = self.readout_matrix() if readout_matrix is None else readout_matrix
        weight, bias = self.stream_weight(layer)
        maps = readout.unflatten(1, (self.pools, -1)).transpose(0, 1)  # (J, d, D)
        inside = torch.cat([pool @ weight for pool in maps], dim=2)
        shift = torch.stack([pool @ bias for pool in maps], dim=1) / self.num_heads
        return torch.cat([inside, shift.expand(self.num_heads, -1, -1)], dim=2)

    def float64(self, tensor: Tensor) -> Tensor:
        """Detach and cast a tensor to float64, on the CPU where its device has none."""
        return tensor.detach().to(self.float64_device).double()

    @property
    def float64_device(self) -> torch.device:
        """The device that float64 sums run on: the weights' own, or the CPU where it has none."""
        device = self.layers[0].output_projection.weight.device
        return torch.device("cpu") if device.type == "mps" else device


def path_of(model: nn.Module, part: nn.Module) -> str:
    """Name a module by where it is, or PEFT's layer around it."""
    part = unwrapped(part)
    return next(name for name, module in model.named_modules() if unwrapped(module) is part)


def unwrapped(module: Any) -> Any:
    """Take PEFT's layers off: the innermost `base_layer`, or what `modules_to_save` copied."""
    while isinstance(inner := _inside(module), nn.Module):
        module = inner
    return module


def _inside(module: Any) -> Any:
    # by what it has: PEFT is not imported at the top (`registration`)
    saved = isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict)
    return getattr(module, "original_module" if saved else "base_layer", None)


def checked(anatomy: TowerAnatomy) -> TowerAnatomy:
    """Refuse parts that the linear algebra below would misread in silence."""
    if not isinstance(anatomy.final_norm, nn.LayerNorm):
        raise ResiDualError(
            f"{anatomy.architecture}: wanted a LayerNorm before the readout, got "
            f"{type(anatomy.final_norm).__name__}."
        )
    for index, layer in enumerate(anatomy.layers):
        name = f"{anatomy.architecture}: the attention output projection of layer {index}"
        check_linear(
            name, layer.output_projection, anatomy.width, fused=layer.attention is not None
        )
        if layer.attention is not None:
            check_attention(
                f"{anatomy.architecture}: the attention of layer {index}", layer.attention
            )
        if layer.output_projection.in_features % anatomy.num_heads:
            raise ResiDualError(
                f"{name} takes {layer.output_projection.in_features} features, which "
                f"{anatomy.num_heads} heads cannot share equally."
            )
    if isinstance(anatomy.projection, nn.Module):
        check_linear(f"{anatomy.architecture}: the visual projection", anatomy.projection)
    return anatomy


def check_linear(
    name: str, module: nn.Module, out_features: int | None = None, *, fused: bool = False
) -> None:
    """Refuse what is not a plain linear layer with its weight at hand, `name` for messages.

    `nn.MultiheadAttention` never calls its fused output projection, so that hooks on it and
    adapters in its place do nothing, in silence: it passes as `fused` alone, where the anatomy says
    so. Quantised weights are packed.
    """
    inside = isinstance(module, NonDynamicallyQuantizableLinear)
    if not isinstance(module, nn.Linear) or (inside and not fused):
        kind = type(module).__name__
        kind = f"{type(module).__module__}.Linear" if kind == "Linear" else kind
        raise ResiDualError(
            f"{name} is a {kind}; wanted a plain nn.Linear (neither fused nor "
            "quantised): load the model with its plain attention, in float16 or wider."
        )
    weight, shape = module.weight, (out_features or module.out_features, module.in_features)
    if not weight.is_floating_point() or tuple(weight.shape) != shape:
        raise ResiDualError(
            f"{name} keeps a {tuple(weight.shape)} weight of {weight.dtype}; wanted {shape} in "
            "floating point: load the model without quantisation."
        )
