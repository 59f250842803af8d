"""Tiny CLIP models whose every weight is random, so that a forgotten bias is seen."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.integrations.peft import MIN_PEFT_VERSION

from tests.pairs import dealt


@dataclass(frozen=True)
class Size:
    """Sizes of a tiny tower; the defaults are head_dim 12, d < D."""

    width: int = 24
    heads: int = 2
    layers: int = 2
    readout: int = 16
    image: int = 16
    patch: int = 8


SIZES = {
    "usual": Size(),
    "one layer": Size(layers=1),
    "one head": Size(heads=1, width=20),
    "d > D": Size(width=18, heads=3, readout=29),
    "d = D": Size(readout=24),
    "d < e + 1": Size(width=32, heads=2, readout=7),
    "many heads": Size(width=40, heads=8, layers=3, readout=20, image=24),
}


# transformers' own add_adapter and load_adapter refuse a PEFT older than they know, and a new
# transformers may be out before that PEFT is
transformers_admits_peft = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers wants peft >= {MIN_PEFT_VERSION} for its own integration",
)


def randomize(model: nn.Module, seed: int = 0) -> Any:
    """Draw every parameter afresh: random biases, and LayerNorm weights that are not ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "logit_scale" in name:
                continue
            # open_clip calls them ln_1, ln_pre ...
            norm = "norm" in name or re.search(r"(^|\.)ln_", name)
            if (norm and name.endswith("weight")) or name.endswith(("lambda1", "gamma")):
                parameter.copy_(1 + 0.4 * noise)
            elif parameter.ndim > 1 and "embedding" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * 1.5 * fan_in**-0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def vision_config(size: Size) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.width + 5,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        projection_dim=size.readout,
        image_size=size.image,
        patch_size=size.patch,
    )


def text_config(size: Size, vocab_size: int = 64) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=size.readout,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=vocab_size - 1,
        pad_token_id=1,
    )


def clip_model(size: Size | None = None, seed: int = 0, vocab_size: int = 64) -> CLIPModel:
    """Build a whole dual encoder."""
    size = size or Size()
    config = CLIPConfig(
        text_config=text_config(size, vocab_size).to_dict(),
        vision_config=vision_config(size).to_dict(),
        projection_dim=size.readout,
    )
    return randomize(CLIPModel(config), seed)


def clip_vision_model_with_projection(
    size: Size | None = None, seed: int = 0
) -> CLIPVisionModelWithProjection:
    return randomize(CLIPVisionModelWithProjection(vision_config(size or Size())), seed)


def clip_vision_model(size: Size | None = None, seed: int = 0) -> CLIPVisionModel:
    """Build a tower without a projection: its readout is the final norm's output."""
    return randomize(CLIPVisionModel(vision_config(size or Size())), seed)


BUILDERS: dict[str, Callable[..., Any]] = {
    "CLIPModel": clip_model,
    "CLIPVisionModelWithProjection": clip_vision_model_with_projection,
    "CLIPVisionModel": clip_vision_model,
}


def clip_like(prefix: str, kind: str = "Model", **vision: Any) -> Callable[..., Any]:
    """A builder of a relative of CLIP: its dual encoder, or its image tower."""

    def build(size: Size | None = None, seed: int = 0) -> Any:
        size = size or Size()
        config = getattr(transformers, f"{prefix}VisionConfig")(
            **vision_config(size).to_dict() | vision
        )
        if kind == "Model":
            text = text_config(size).to_dict() | {"project_dim": 16, "intermediate_size": 20}
            whole = getattr(transformers, f"{prefix}Config")
            config = whole(
                text_config=text, vision_config=config.to_dict(), projection_dim=size.readout
            )
        return randomize(getattr(transformers, prefix + kind)(config), seed)

    return build


def vit_like(kind: str, **options: Any) -> Callable[..., Any]:
    """A builder of a tower whose readout is a token of its last hidden state."""
    config_of = kind.split("ForImageClassification")[0].removesuffix("Model") + "Config"

    def build(size: Size | None = None, seed: int = 0) -> Any:
        size = size or Size()
        config = getattr(transformers, config_of)(
            hidden_size=size.width,
            intermediate_size=size.width + 5,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            image_size=size.image,
            patch_size=size.patch,
            **options,
        )
        return randomize(getattr(transformers, kind)(config), seed)

    return build


# the towers beside CLIP's own, under the names of their classes; the second of a kind has a remark
TOWERS: dict[str, Callable[..., Any]] = {
    "MetaClip2Model": clip_like("MetaClip2"),
    "MetaClip2VisionModelWithProjection": clip_like("MetaClip2", "VisionModelWithProjection"),
    "MetaClip2VisionModel, GELU": clip_like("MetaClip2", "VisionModel", hidden_act="gelu"),
    "AltCLIPModel": clip_like("AltCLIP"),
    "AltCLIPVisionModel": clip_like("AltCLIP", "VisionModel"),
    "ChineseCLIPModel": clip_like("ChineseCLIP"),
    "ChineseCLIPVisionModel": clip_like("ChineseCLIP", "VisionModel"),
    "CLIPSegModel": clip_like("CLIPSeg"),
    "CLIPSegVisionModel": clip_like("CLIPSeg", "VisionModel"),
    "ViTModel": vit_like("ViTModel"),
    "ViTModel, no qkv bias": vit_like("ViTModel", qkv_bias=False),
    "ViTForImageClassification": vit_like("ViTForImageClassification"),
    "ViTMSNModel": vit_like("ViTMSNModel"),
    "ViTMSNForImageClassification": vit_like("ViTMSNForImageClassification"),
    "DeiTModel": vit_like("DeiTModel"),
    "DeiTForImageClassification": vit_like("DeiTForImageClassification"),
    "DeiTForImageClassificationWithTeacher": vit_like("DeiTForImageClassificationWithTeacher"),
    "Dinov2Model": vit_like("Dinov2Model"),
    "Dinov2Model, SwiGLU": vit_like("Dinov2Model", use_swiglu_ffn=True),
    "Dinov2ForImageClassification": vit_like("Dinov2ForImageClassification"),
    "Dinov2WithRegistersModel": vit_like("Dinov2WithRegistersModel"),
    "Dinov2WithRegistersForImageClassification": vit_like(
        "Dinov2WithRegistersForImageClassification"
    ),
    "DINOv3ViTModel": vit_like("DINOv3ViTModel", num_register_tokens=3),
    "DINOv3ViTModel, gated": vit_like("DINOv3ViTModel", use_gated_mlp=True, key_bias=True),
}
EVERY: dict[str, Callable[..., Any]] = {**BUILDERS, **TOWERS}
# one of each layout of layers and readout
FAMILIES = (
    "CLIPModel",
    "CLIPVisionModel",
    "MetaClip2VisionModelWithProjection",
    "AltCLIPModel",
    "ChineseCLIPVisionModel",
    "CLIPSegVisionModel",
    "ViTModel, no qkv bias",
    "DeiTForImageClassification",
    "Dinov2Model, SwiGLU",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel, gated",
)
# CLIP at all sizes; the others are the same linear algebra
ALL = [(builder, size) for size, builder in dealt(SIZES, BUILDERS)]
ALL += dealt(FAMILIES, ("usual", "one layer"))


def pixels(count: int = 5, size: Size | None = None, seed: int = 0) -> Tensor:
    """Draw random pixel_values (count, 3, image, image)."""
    image = (size or Size()).image
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, 3, image, image, generator=generator)


def vision(model: nn.Module) -> Any:
    """The image tower of a CLIP, or the one that a model is."""
    return getattr(model, "vision_model", model)


def hooks(model: nn.Module) -> int:
    """How many hooks the modules of a model have."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
