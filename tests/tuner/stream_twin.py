"""method.md, section 5, word for word: every head's a_h by itself, in float64, in plain loops."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from residual_peft.tuner import (
    LinearBasis,
    ResiDualConfig,
    ResiDualStreamLinear,
    fit_bases,
    gains_by_module,
)
from tests.models import BUILDERS, TOWERS, Size, pixels, randomize


class SlowLinear(nn.Module):
    """T_h(a_h) = a_h + Φ_hᵀ diag(λ_h − 1) Φ_h (a_h − μ_h), direction by direction."""

    def __init__(self, base: nn.Module, basis: LinearBasis, gains: Tensor, per_unit: bool) -> None:
        super().__init__()
        weight = base.weight.detach().double()
        self.weight = weight.T if isinstance(base, Conv1D) else weight
        self.bias = None if base.bias is None else base.bias.detach().double()
        self.basis, self.gains, self.per_unit = basis, gains.detach().double(), per_unit

    def forward(self, x: Tensor) -> Tensor:
        heads = len(self.basis.heads)
        size = self.weight.shape[1] // heads
        gains, total = iter(self.gains), 0
        for head, basis in enumerate(self.basis.heads):
            part = slice(head * size, (head + 1) * size)
            written = x[..., part] @ self.weight[:, part].T
            if self.bias is not None:
                written = written + self.bias / heads
            total = total + written
            gain = next(gains) if self.per_unit else None
            for direction in basis.components.double():
                change = (gain if self.per_unit else next(gains)) - 1
                centred = (written - basis.mean.double()) @ direction
                total = total + change * centred.unsqueeze(-1) * direction
        return total


def slow(model: PeftModel, base: nn.Module, adapter_name: str = "default") -> nn.Module:
    """The unadapted model in float64, its Linears replaced by the definition."""
    base = copy.deepcopy(base).double()
    per_unit = model.peft_config[adapter_name].granularity == "unit"
    for path, gains in gains_by_module(model, adapter_name).items():
        layer = model.base_model.model.get_submodule(path)
        parent, _, name = path.rpartition(".")
        wanted = SlowLinear(base.get_submodule(path), layer.basis(adapter_name), gains, per_unit)
        setattr(base.get_submodule(parent), name, wanted)
    return base


class Mlp(nn.Module):
    """Plain Linears, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 12)
        self.second = nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Attention(nn.Module):
    """Whatever has a number of heads and an output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 3
        self.value = nn.Linear(8, 12)
        self.out_proj = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(torch.tanh(self.value(x)))


def _small(model: type, config: type, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: randomize(model(config(**sizes)))


WIDTH = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2}
WORDS = {**WIDTH, "intermediate_size": 14, "vocab_size": 20}
TOKENS = torch.randint(2, 18, (4, 5), generator=torch.Generator().manual_seed(3))
VECTORS = torch.randn(4, 7, 10, generator=torch.Generator().manual_seed(4))


def clip_output(model: Any, dtype: torch.dtype) -> Tensor:
    """What the image side says, with an adapter or without."""
    images = pixels().to(dtype)
    return (
        model(pixel_values=images)[0]
        if _text(model) is None
        else model.get_image_features(pixel_values=images).pooler_output
    )


def _text(model: Any) -> Any:
    return getattr(model, "get_text_features", None)


CASES: dict[str, SimpleNamespace] = {
    name: SimpleNamespace(build=build, targets=None, run=clip_output, batches=[pixels(30, seed=5)])
    for name, build in BUILDERS.items()
}


def tower_output(model: Any, dtype: torch.dtype) -> Tensor:
    """What the tower says of an image: of every token where the readout is one of them."""
    if _text(model) is not None:
        return clip_output(model, dtype)
    output = model(pixel_values=pixels().to(dtype))
    return output[0] if "logits" in output else output.last_hidden_state


CASES |= {
    name: SimpleNamespace(
        build=TOWERS[name], targets=None, run=tower_output, batches=[pixels(30, seed=5)]
    )
    for name in (
        "MetaClip2Model",
        "AltCLIPModel",
        "ChineseCLIPModel",
        "CLIPSegModel",
        "ViTForImageClassification",
        "ViTMSNForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTModel",
        "Dinov2Model",
        "Dinov2Model, SwiGLU",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersModel",
        "DINOv3ViTModel",
    )
}


def _words(model: Any, dtype: torch.dtype) -> Tensor:
    return model(input_ids=TOKENS).last_hidden_state


def _case(build: Callable, targets: Any, run: Callable, batches: list) -> SimpleNamespace:
    return SimpleNamespace(build=build, targets=targets, run=run, batches=batches)


CASES |= {
    "plain": _case(
        lambda: randomize(Mlp()), "all-linear", lambda m, d: m(VECTORS.to(d)), [VECTORS]
    ),
    "parent's heads": _case(
        lambda: randomize(Attention()),
        ["out_proj"],
        lambda m, d: m(VECTORS[..., :8].to(d)),
        [VECTORS[..., :8]],
    ),
    "GPT-2": _case(
        _small(GPT2Model, GPT2Config, n_embd=12, n_head=3, n_layer=2, vocab_size=20),
        ["c_proj"],
        _words,
        [{"input_ids": TOKENS}],
    ),
    "Llama": _case(
        _small(LlamaModel, LlamaConfig, num_key_value_heads=1, **WORDS),
        r".*\.(o_proj|down_proj)",
        _words,
        [{"input_ids": TOKENS}],
    ),
    "BERT": _case(
        _small(BertModel, BertConfig, max_position_embeddings=8, **WORDS),
        ["output.dense"],
        _words,
        [{"input_ids": TOKENS}],
    ),
    "ViT": _case(
        _small(ViTModel, ViTConfig, image_size=16, patch_size=8, intermediate_size=14, **WIDTH),
        ["attention.output.dense", "attention.o_proj"],
        lambda m, d: m(pixel_values=pixels().to(d)).last_hidden_state,
        [{"pixel_values": pixels(30, seed=5)}],
    ),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "first 3": {"components": 3},
    "share": {"components": 0.8},
    "unit": {"granularity": "unit"},
}


def adapted_stream(
    case: str,
    *,
    dtype: torch.dtype = torch.float32,
    fit: bool = True,
    gains: bool = True,
    **options: Any,
) -> PeftModel:
    """A tiny model with one adapter in stream mode, its gains random."""
    what = CASES[case]
    config = ResiDualConfig(mode="stream", **{"target_modules": what.targets, **options})
    model = get_peft_model(what.build().to(dtype), config).eval()
    if fit:
        fit_bases(model, cast_batches(what.batches, dtype))
    if gains:
        random_gains(model)
    return model


def cast_batches(batches: list, dtype: torch.dtype) -> list:
    """The same batches in another precision; tokens stay whole numbers."""

    def cast(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cast(item) for name, item in value.items()}
        return value.to(dtype) if value.is_floating_point() else value

    return [cast(batch) for batch in batches]


def random_gains(model: nn.Module, adapter_name: str = "default", seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for gains in gains_by_module(model, adapter_name).values():
        gains.data = (1 + 0.5 * torch.randn(gains.shape, generator=generator)).to(gains.dtype)


def layers_of(model: nn.Module) -> list[ResiDualStreamLinear]:
    return [layer for layer in model.modules() if isinstance(layer, ResiDualStreamLinear)]


def output(case: str, model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return CASES[case].run(model, dtype)


__all__ = ["CASES", "OPTIONS", "Size", "adapted_stream", "layers_of", "output", "slow"]
