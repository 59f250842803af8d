"""Where an architecture keeps its parts, and the linear maps between them.

An architecture is one function from a model to a `TowerAnatomy`, registered under the name of its
class; `architectures` holds those of transformers. Everything below the two reads parts and sizes
from the anatomy and knows no model.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import ResiDualError, short
from .fused_attention import check_attention
from .pooling import AttentionPooling, FirstToken, MeanPooling, Pooling, SecondNorm

UNIT_KINDS = ("embed", "head", "mlp", "pooler", "output")
SIDES = ("image", "text")
READOUTS = ("own", "mean", "patches")
CLASS_TOKEN = FirstToken()
_UNIT_NAME = re.compile(r"layer([0-9]{1,9})\.(?:mlp|head([0-9]{1,9}))")

UNKNOWN = "the architecture {name} is not known{side}; wanted one of {known}. To describe it:"
EXAMPLE = """    from residual_peft import TowerAnatomy, register_architecture
    @register_architecture("{name}")
    def describe(model): return TowerAnatomy("{name}", model, tower=model.tower, ...)
decompose(model, pixel_values) then checks that the units sum to the model's own readout."""


@dataclass(frozen=True)
class Unit:
    """One writer to the residual stream, or `output` for the readout as a whole.

    `pooler` is the MLP after an attention pooling, which writes to the readout itself.

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
        if text in ("embed", "pooler", "output"):
            return cls(text)
        if found := _UNIT_NAME.fullmatch(text):
            layer, head = int(found[1]), found[2]
            return cls("mlp", layer) if head is None else cls("head", layer, int(head))
        raise ResiDualError(
            f"{short(text)} is not the name of a unit; wanted 'embed', 'layer3.head5', "
            "'layer3.mlp', 'pooler' or 'output'."
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
    weights that each token has in the readout (1 but for an attention pooling: `pooling`).
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
    # its index, or what finds that of each sample (B,) in the arguments of the tower's forward
    readout_token: int | Callable[[tuple[Any, ...], dict[str, Any]], int | Tensor] = CLASS_TOKEN
    reads_tokens: bool = False  # the readout is read from the tower's last_hidden_state
    outside: tuple[nn.Module, ...] = ()  # parts of the tower that its readout does not pass through
    side: str = "image"
    inputs: tuple[str, ...] = ("pixel_values",)  # of the model's forward; the first is a must
    read: "Callable[[TowerAnatomy, Mapping[str, Any]], Tensor] | None" = None  # inputs -> readout
    pooling: Pooling | None = None  # None: one token
    readout: str | None = None  # None: the model's own
    # tokens before the patches, of all that the final norm puts out; None where it sees one alone
    prefix_tokens: int | None = None
    mask: str | None = None  # the input that says which tokens are no padding
    whole: bool = False  # the module whose output is the readout is the tower itself
    # the named tensors of its fingerprint, where those are not the modules' own
    weights: "Callable[[TowerAnatomy], Mapping[str, Tensor]] | None" = None

    def token(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | Tensor:
        """The readout token's index in a call of the tower, or that of each sample (B,)."""
        known = self.readout_token
        return known if isinstance(known, int) else known(args, dict(kwargs))

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
    def by_thread(self) -> bool:
        """Whether a capture is handed over by thread, as no tensor carries it to the readout."""
        return self.whole or self.cuts_out

    @property
    def pools(self) -> int:
        """J, how many weights each token has in the readout."""
        return 1 if self.pooling is None else self.pooling.count

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
        if isinstance(self.pooling, AttentionPooling):
            units.append(Unit("pooler"))
        return [unit for unit in [*units, Unit("output")] if unit.kind in kinds]

    def readout_matrix(self) -> Tensor:
        """R = P diag(γ) (I − 11ᵀ/D), shape (d, D), float64: method.md, section 1.

        With J pools, one such map for each, side by side: (d, J·D).
        """
        norm, maps = self.final_norm, [self._output_map()]
        if isinstance(self.pooling, AttentionPooling):
            maps = [self.float64(matrix) for matrix in self.pooling.maps()]
        if isinstance(self.pooling, SecondNorm):
            maps = [maps[0] @ self.float64(self.pooling.map())]
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
        bias = torch.zeros(self.width, dtype=torch.float64, device=self.float64_device)
        if norm.bias is not None:
            bias = self.float64(norm.bias)
        if isinstance(self.pooling, AttentionPooling):
            maps = torch.stack([self.float64(matrix) for matrix in self.pooling.maps()])
            return maps.sum(0) @ bias + self.float64(self.pooling.bias())
        if projection is None:
            return bias
        bias = self.float64(projection.weight) @ bias
        return bias if projection.bias is None else bias + self.float64(projection.bias)

    def constant_map(self) -> Tensor | None:
        """What 1/σ₂ of a final norm that runs twice is multiplied with (d,), float64, or None."""
        if not isinstance(self.pooling, SecondNorm):
            return None
        return self._output_map() @ self.float64(self.pooling.shift())

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


Describe = Callable[[nn.Module], TowerAnatomy]
ARCHITECTURES: dict[str, dict[str, Describe]] = {side: {} for side in SIDES}
UNSUITED: dict[str, dict[str, str]] = {side: {} for side in SIDES}
"""Side -> class -> why that tower of it cannot be decomposed."""


def register_architecture(*class_names: str, side: str = "image") -> Callable[[Describe], Describe]:
    """Register a function from a model to its anatomy under the names of the model's class."""

    def register(function: Describe) -> Describe:
        ARCHITECTURES[side].update(dict.fromkeys(class_names, function))
        return function

    return register


def base_model(model: nn.Module) -> nn.Module:
    """Take a `PeftModel` or a bare tuner off a model; any other model is returned as it is."""
    from peft import PeftModel  # not at the top: `registration`
    from peft.tuners.tuners_utils import BaseTuner

    while isinstance(model, PeftModel | BaseTuner):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.model
    return model


def find_tower(
    model: nn.Module, side: str | None = None, readout: str | None = None
) -> TowerAnatomy:
    """Find the parts of a model's tower, whether or not PEFT has wrapped some of them.

    Args:
        model: the model.
        side: "image" or "text"; None the image tower where there is one.
        readout: "own" the model's own, "mean" the mean of all tokens after the final norm,
            "patches" of those that stand for patches; None what an adapter of that tower adapts,
            else the model's own.

    Raises:
        ResiDualError: the architecture is not known, one of its parts is not as expected, or it has
            no such readout.
    """
    model = base_model(model)
    if side is not None and side not in SIDES:
        raise ResiDualError(f"wanted side 'image' or 'text', got {side!r}.")
    if readout is not None and readout not in READOUTS:
        raise ResiDualError(
            f"wanted readout 'own' (the model's), 'mean' or 'patches', got {readout!r}."
        )
    sides = SIDES if side is None else (side,)
    describe = next(filter(None, (_describe(model, one) for one in sides)), None)
    if describe is None:
        name = type(model).__name__
        if side is not None and (reason := UNSUITED[side].get(name)) is not None:
            raise ResiDualError(f"the {side} tower of {name} {reason}.")
        known = ", ".join(sorted(ARCHITECTURES[side or "image"]))
        raise ResiDualError(
            UNKNOWN.format(
                name=name,
                known=known,
                side="" if side is None else f" for its {side} tower",
            ),
            EXAMPLE.format(name=name),
        )
    anatomy = _checked(_bare(describe(model)))
    if readout is None:
        readout = _adapted_readout(model, anatomy.side)
    return anatomy if readout in (None, "own", anatomy.readout) else _mean_readout(anatomy, readout)


def _describe(model: nn.Module, side: str) -> Describe | None:
    """Find what describes a model's tower; a subclass is read as its parent."""
    classes = (cls.__name__ for cls in type(model).__mro__)
    return next(
        (ARCHITECTURES[side][name] for name in classes if name in ARCHITECTURES[side]), None
    )


def _adapted_readout(model: nn.Module, side: str) -> str | None:
    """Which readout of a tower an adapter in the model changes."""
    found = (getattr(module, "anatomy", None) for module in model.modules())
    towers = (a for a in found if isinstance(a, TowerAnatomy) and a.side == side)
    return next((anatomy.readout for anatomy in towers), None)


def _mean_readout(anatomy: TowerAnatomy, readout: str) -> TowerAnatomy:
    """Turn a tower into one whose readout is the mean of its tokens, each after the final norm.

    Raises:
        ResiDualError: its final norm does not run over all tokens.
    """
    if any(layer.attention is not None for layer in anatomy.layers):
        raise ResiDualError(
            f"readout={readout!r}: the fused attention of {anatomy.architecture} is read at one "
            "token. Leave readout out, or turn the model into one of transformers (of open_clip: "
            "open_clip_to_transformers(model))."
        )
    if anatomy.prefix_tokens is None:
        raise ResiDualError(
            f"readout={readout!r}: {anatomy.architecture} runs its final norm over the readout "
            "token alone, so that its tokens have no mean that belongs to the model. Leave readout "
            "out, or take a tower whose last_hidden_state is normed (ViT, DINO, SigLIP, I-JEPA)."
        )
    if readout == "patches" and anatomy.side == "text":
        raise ResiDualError("readout='patches' of a text tower: wanted 'mean', or the model's own.")
    named = anatomy.model.named_modules()
    path = next(name for name, module in named if unwrapped(module) is anatomy.final_norm)
    outside = list(anatomy.outside)
    if isinstance(anatomy.pooling, AttentionPooling):
        outside.append(anatomy.pooling.head)
    return replace(
        anatomy,
        projection=None,
        projection_path=path,
        readout_token=CLASS_TOKEN,
        reads_tokens=True,
        outside=tuple(outside),
        read=None,
        pooling=MeanPooling(anatomy.prefix_tokens if readout == "patches" else 0, anatomy.mask),
        readout=readout,
    )


def unwrapped(module: nn.Module) -> Any:
    """Take PEFT's layers off a module: the innermost `base_layer`."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def _bare(anatomy: TowerAnatomy) -> TowerAnatomy:
    """Take PEFT's layers off all parts: who describes a tower need not think of them."""

    def bare(part: LayerAnatomy) -> LayerAnatomy:
        return replace(
            part,
            output_projection=unwrapped(part.output_projection),
            mlp=unwrapped(part.mlp),
            mlp_projection=unwrapped(part.mlp_projection),
        )

    return replace(
        anatomy,
        embedding=unwrapped(anatomy.embedding),
        layers=tuple(bare(part) for part in anatomy.layers),
        final_norm=unwrapped(anatomy.final_norm),
        projection=unwrapped(anatomy.projection)
        if isinstance(anatomy.projection, nn.Module)
        else anatomy.projection,
    )


def _checked(anatomy: TowerAnatomy) -> TowerAnatomy:
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
    """Refuse what is not a plain linear layer with its weight at hand.

    `nn.MultiheadAttention` never calls its fused output projection, so that hooks on it and
    adapters in its place do nothing, in silence: it passes as `fused` alone, where the anatomy says
    so. Quantised weights are packed.

    Raises:
        ResiDualError: begins with `name`, and says what it is.
    """
    inside = isinstance(module, NonDynamicallyQuantizableLinear)
    if not isinstance(module, nn.Linear) or (inside and not fused):
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


# the families come with the registry, whichever module of the package is imported first; by name,
# as they stand below it
for _family in ("architectures", "open_clip"):
    importlib.import_module(f"{__package__}.{_family}")
