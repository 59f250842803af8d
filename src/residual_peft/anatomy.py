"""Where an architecture keeps its parts, and the linear maps between them.

An architecture is one function from a model to a `TowerAnatomy`, registered under the name of its
class; `architectures` holds those of transformers. Everything below the two reads parts and sizes
from the anatomy and knows no model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .errors import ResiDualError

UNIT_KINDS = ("embed", "head", "mlp", "output")

UNKNOWN = """the architecture {name} is not known; wanted one of {known}. To describe your own:
    from residual_peft import TowerAnatomy, register_architecture
    @register_architecture("{name}")
    def describe(model): return TowerAnatomy("{name}", model, tower=model.tower, ...)
decompose(model, pixel_values) then checks that the units sum to the model's own readout."""


@dataclass(frozen=True)
class Unit:
    """One writer to the residual stream, or `output` for the readout as a whole.

    >>> str(Unit("head", 3, 5)), str(Unit("mlp", 3)), str(Unit("embed"))
    ('layer3.head5', 'layer3.mlp', 'embed')
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in UNIT_KINDS:
            raise ResiDualError(
                f"unknown unit kind {self.kind!r}; the kinds are {', '.join(UNIT_KINDS)}."
            )
        wanted = (self.kind in ("head", "mlp"), self.kind == "head")
        if wanted != (self.layer is not None, self.head is not None):
            raise ResiDualError(
                f"a unit of kind {self.kind!r} has a layer: {wanted[0]}, a head: {wanted[1]}; "
                f"got layer={self.layer}, head={self.head}."
            )

    def __str__(self) -> str:
        if self.kind == "head":
            return f"layer{self.layer}.head{self.head}"
        return self.kind if self.layer is None else f"layer{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Unit":
        """Read what `str(unit)` wrote.

        >>> Unit.parse("layer3.head5")
        Unit(kind='head', layer=3, head=5)

        Raises:
            ResiDualError: `text` is not the name of a unit.
        """
        layer, _, rest = text.partition(".")
        number = layer.removeprefix("layer")
        if not rest and text in ("embed", "output"):
            return cls(text)
        if layer.startswith("layer") and number.isdecimal():
            if rest == "mlp":
                return cls("mlp", int(number))
            if rest.startswith("head") and rest[4:].isdecimal():
                return cls("head", int(number), int(rest[4:]))
        raise ResiDualError(
            f"{text!r} is not the name of a unit; wanted 'embed', 'layer3.head5', 'layer3.mlp' or "
            "'output'."
        )


@dataclass(frozen=True)
class LayerAnatomy:
    """The parts of one transformer block."""

    module: nn.Module
    output_projection: nn.Linear
    mlp: nn.Module
    mlp_projection: nn.Linear  # the MLP's last linear map
    attention_scale: Tensor | None = None  # layer scale (D,), folded into the output projection
    mlp_scale: Tensor | None = None  # layer scale (D,)


@dataclass(frozen=True)
class TowerAnatomy:
    """An image tower: modules with any PEFT wrapping taken off, and the sizes read from them.

    Symbols of `method.md`: L layers, H heads, e head_dim, D width, d readout_width.
    """

    architecture: str
    model: nn.Module
    tower: nn.Module  # the module whose forward runs the stream
    embedding: nn.Module  # its output at the readout token is the stream's start
    layers: tuple[LayerAnatomy, ...]
    final_norm: nn.LayerNorm
    projection: nn.Linear | None
    projection_path: str  # in `model`, of the module whose output is the readout
    num_heads: int
    readout_token: int = 0
    reads_tokens: bool = False  # the readout is that token of the tower's last_hidden_state
    outside: tuple[nn.Module, ...] = ()  # parts of the tower that its readout does not pass through

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

    def units(self, kinds: Iterable[str] = ("embed", "head", "mlp")) -> list[Unit]:
        """List the units of the given kinds: embed, each layer's heads and MLP, output.

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
        return [unit for unit in [*units, Unit("output")] if unit.kind in kinds]

    def readout_matrix(self) -> Tensor:
        """R = P diag(γ) (I − 11ᵀ/D), shape (d, D), float64: method.md, section 1."""
        norm = self.final_norm
        matrix = torch.eye(self.width, dtype=torch.float64, device=self.float64_device)
        if self.projection is not None:
            matrix = self.float64(self.projection.weight)
        if norm.weight is not None:
            matrix = matrix * self.float64(norm.weight)
        return matrix - matrix.mean(1, keepdim=True)

    def readout_bias(self) -> Tensor:
        """P β, and the projection's own bias where it has one: shape (d,), float64."""
        norm, projection = self.final_norm, self.projection
        bias = torch.zeros(self.width, dtype=torch.float64, device=self.float64_device)
        if norm.bias is not None:
            bias = self.float64(norm.bias)
        if projection is None:
            return bias
        bias = self.float64(projection.weight) @ bias
        return bias if projection.bias is None else bias + self.float64(projection.bias)

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

        A head's contribution is B_u ẑ with ẑ = [z/σ ; 1/σ]: method.md, section 2.
        `readout_matrix` saves computing R again.
        """
        readout = self.readout_matrix() if readout_matrix is None else readout_matrix
        weight, bias = self.stream_weight(layer)
        shift = (readout @ bias / self.num_heads)[None, :, None]
        return torch.cat([readout @ weight, shift.expand(self.num_heads, -1, 1)], dim=2)

    def float64(self, tensor: Tensor) -> Tensor:
        """Detach and cast a tensor to float64, on the CPU where its device has none."""
        return tensor.detach().to(self.float64_device).double()

    @property
    def float64_device(self) -> torch.device:
        """The device that float64 sums run on: the weights' own, or the CPU where it has none."""
        device = self.layers[0].output_projection.weight.device
        return torch.device("cpu") if device.type == "mps" else device


ARCHITECTURES: dict[str, Callable[[nn.Module], TowerAnatomy]] = {}


def register_architecture(
    *class_names: str,
) -> Callable[[Callable[[nn.Module], TowerAnatomy]], Callable[[nn.Module], TowerAnatomy]]:
    """Register a function from a model to its anatomy under the names of the model's class."""

    def register(function: Callable[[nn.Module], TowerAnatomy]) -> Callable:
        ARCHITECTURES.update(dict.fromkeys(class_names, function))
        return function

    return register


def base_model(model: nn.Module) -> nn.Module:
    """Take a `PeftModel` or a bare tuner off a model; any other model is returned as it is."""
    while isinstance(model, PeftModel | BaseTuner):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.model
    return model


def find_tower(model: nn.Module) -> TowerAnatomy:
    """Find the parts of a model's image tower, whether or not PEFT has wrapped some of them.

    Raises:
        ResiDualError: the architecture is not known, or one of its parts is not as expected.
    """
    model = base_model(model)
    for cls in type(model).__mro__:  # a subclass is read as its parent; the exactness check judges
        if cls.__name__ in ARCHITECTURES:
            return _checked(ARCHITECTURES[cls.__name__](model))
    known = ", ".join(sorted(ARCHITECTURES))
    raise ResiDualError(UNKNOWN.format(name=type(model).__name__, known=known))


def unwrapped(module: nn.Module) -> Any:
    """Take PEFT's layers off a module: the innermost `base_layer`."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _checked(anatomy: TowerAnatomy) -> TowerAnatomy:
    """Refuse parts that the linear algebra below would misread in silence."""
    if not isinstance(anatomy.final_norm, nn.LayerNorm):
        raise ResiDualError(
            f"{anatomy.architecture}: wanted a LayerNorm before the readout, got "
            f"{type(anatomy.final_norm).__name__}."
        )
    for index, layer in enumerate(anatomy.layers):
        name = f"{anatomy.architecture}: the attention output projection of layer {index}"
        check_linear(name, layer.output_projection, anatomy.width)
        if layer.output_projection.in_features % anatomy.num_heads:
            raise ResiDualError(
                f"{name} takes {layer.output_projection.in_features} features, which "
                f"{anatomy.num_heads} heads cannot share equally."
            )
    if anatomy.projection is not None:
        check_linear(f"{anatomy.architecture}: the visual projection", anatomy.projection)
    return anatomy


def check_linear(name: str, module: nn.Module, out_features: int | None = None) -> None:
    """Refuse what is not a plain linear layer with its weight at hand.

    `nn.MultiheadAttention` never calls its fused output projection, so that hooks on it and
    adapters in its place do nothing, in silence; quantised weights are packed.

    Raises:
        ResiDualError: begins with `name`, and says what it is.
    """
    if not isinstance(module, nn.Linear) or isinstance(module, NonDynamicallyQuantizableLinear):
        raise ResiDualError(
            f"{name} is a {_kind(module)}; wanted a plain nn.Linear (neither fused nor "
            "quantised): load the model with its plain attention, in float16 or wider."
        )
    weight, shape = module.weight, (out_features or module.out_features, module.in_features)
    if not weight.is_floating_point() or tuple(weight.shape) != shape:
        raise ResiDualError(
            f"{name} keeps a {tuple(weight.shape)} weight of {weight.dtype}; wanted {shape} in "
            "floating point: load the model without quantisation."
        )


def _kind(module: nn.Module) -> str:
    kind = type(module)
    return kind.__name__ if kind.__name__ != "Linear" else f"{kind.__module__}.Linear"
