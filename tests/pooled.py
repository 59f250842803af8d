"""Towers whose readout is pooled, normed twice, cut out of all tokens, or of texts; and their twin.

The twin records what modules take and give, in float64, and then follows the definition of each
readout word for word: loops over samples, tokens and pooling heads, nothing of the package.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from residual_peft.towers.units import Unit
from tests.models import Size, clip_model, pixels, randomize, text_config, vit_like
from tests.slow import layer_norm

EOS = 63


def sizes(size: Size) -> dict[str, Any]:
    """What every image tower's config names alike."""
    return {
        "hidden_size": size.width,
        "intermediate_size": size.width + 5,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "image_size": size.image,
        "patch_size": size.patch,
    }


def text_sizes(size: Size) -> dict[str, Any]:
    return text_config(size).to_dict() | {
        "projection_size": size.width,
        "encoder_hidden_size": size.width,
        "sep_token_id": 2,
        "num_hidden_layers": 2,
    }


def dual(name: str, flexible: bool = False, **options: Any) -> Callable[..., Any]:
    """A builder of a dual encoder with a text tower of CLIP's sizes."""

    def build(size: Size | None = None, seed: int = 0) -> Any:
        size = size or Size()
        vision = sizes(size)
        if flexible:
            vision = {k: v for k, v in vision.items() if k != "image_size"} | {"num_patches": 16}
        prefix = name.removesuffix("Model").removesuffix("ForImageTextRetrieval")
        config = getattr(transformers, f"{prefix}Config")(
            text_config=text_sizes(size), vision_config=vision, **options
        )
        model = getattr(transformers, name)(config)
        if "logit_bias" in dict(model.named_parameters()):
            model.logit_scale.data.fill_(1.5)
        return randomize(model, seed)

    return build


def image_side(name: str, flexible: bool = False, **options: Any) -> Callable[..., Any]:
    """A builder of SigLIP's image tower alone."""

    def build(size: Size | None = None, seed: int = 0) -> Any:
        vision = sizes(size or Size())
        if flexible:
            vision = {k: v for k, v in vision.items() if k != "image_size"} | {"num_patches": 16}
        prefix = name.removesuffix("ForImageClassification").removesuffix("Model")
        config = getattr(transformers, f"{prefix}Config")(
            **({"vision_config": vision} if prefix != name.removesuffix("Model") else vision),
            **options,
        )
        return randomize(getattr(transformers, name)(config), seed)

    return build


def text_side(name: str) -> Callable[..., Any]:
    """A builder of a text tower alone."""

    def build(size: Size | None = None, seed: int = 0) -> Any:
        prefix = name.removesuffix("WithProjection").removesuffix("Model")
        config = getattr(transformers, f"{prefix}Config")(**text_sizes(size or Size()))
        return randomize(getattr(transformers, name)(config), seed)

    return build


def images(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": pixels(count, seed=seed)}


def patches(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """What NaFlex models take: images of different shapes, cut into patches and padded."""
    generator = torch.Generator().manual_seed(2000 + seed)
    shapes = torch.randint(1, 5, (count, 2), generator=generator)
    shapes[0] = 4  # one without padding
    lengths = shapes.prod(1, keepdim=True)
    return {
        "pixel_values": torch.randn(count, 16, 3 * 64, generator=generator),
        "pixel_attention_mask": (torch.arange(16) < lengths).long(),
        "spatial_shapes": shapes,
    }


def texts(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Token ids that end at different places, with other tokens behind the end."""
    generator = torch.Generator().manual_seed(3000 + seed)
    ids = torch.randint(2, EOS, (count, 9), generator=generator)
    ids[torch.arange(count), torch.randint(1, 9, (count,), generator=generator)] = EOS
    return {"input_ids": ids}


@dataclass(frozen=True)
class Pooled:
    """A model, what it takes, where its tower is, and the readout's kind for the twin."""

    build: Callable[..., Any]
    kind: str  # "attention", "twice", "mean", "patches", "classes", "first", "end", "last"
    batch: Callable[..., dict[str, Tensor]] = images
    tower: str = "vision_model"
    projection: str | None = None
    norm: str = "post_layernorm"
    prefix: int = 0  # tokens before the patches
    options: tuple[tuple[str, str], ...] = ()  # side, readout


def mean_of(case: Pooled, readout: str) -> Pooled:
    """The same model, read out by the mean of its tokens."""
    return Pooled(
        case.build,
        readout,
        case.batch,
        case.tower,
        None,
        case.norm,
        case.prefix,
        (("readout", readout),),
    )


TEXT = (("side", "text"),)
VIT = Pooled(vit_like("ViTModel"), "first", tower="", norm="layernorm", prefix=1)
DINO = Pooled(
    vit_like("Dinov2WithRegistersModel", num_register_tokens=3),
    "first",
    tower="",
    norm="layernorm",
    prefix=4,
)
SIGLIP = Pooled(dual("SiglipModel"), "attention")
SIGLIP2 = Pooled(dual("Siglip2Model", flexible=True), "attention", patches)
MAE = Pooled(
    vit_like("ViTMAEModel", mask_ratio=0.0), "classes", tower="", norm="layernorm", prefix=1
)
PIXIO = Pooled(
    vit_like("PixioModel", n_cls_tokens=3, mlp_ratio=2),
    "classes",
    tower="",
    norm="layernorm",
    prefix=3,
)
RETRIEVAL = Pooled(
    dual("BlipForImageTextRetrieval", image_text_hidden_size=16),
    "first",
    projection="vision_proj",
    prefix=1,
)
POOLED: dict[str, Pooled] = {
    "SiglipModel": SIGLIP,
    "SiglipVisionModel": Pooled(image_side("SiglipVisionModel"), "attention", tower=""),
    "SiglipVisionModel, no head": Pooled(
        image_side("SiglipVisionModel", vision_use_head=False), "mean", tower=""
    ),
    "SiglipModel, mean": mean_of(SIGLIP, "mean"),
    "Siglip2Model": SIGLIP2,
    "Siglip2VisionModel": Pooled(
        image_side("Siglip2VisionModel", flexible=True), "attention", patches, tower=""
    ),
    "Siglip2Model, mean": mean_of(SIGLIP2, "mean"),
    "BlipForImageTextRetrieval": RETRIEVAL,
    "BlipForImageTextRetrieval, patches": mean_of(RETRIEVAL, "patches"),
    "BlipModel": Pooled(
        dual("BlipModel", projection_dim=16), "twice", projection="visual_projection"
    ),
    "SiglipForImageClassification": Pooled(image_side("SiglipForImageClassification"), "mean"),
    "Siglip2ForImageClassification": Pooled(
        image_side("Siglip2ForImageClassification", flexible=True), "mean", patches
    ),
    "IJepaModel": Pooled(vit_like("IJepaModel"), "mean", tower="", norm="layernorm"),
    "IJepaForImageClassification": Pooled(
        vit_like("IJepaForImageClassification"), "mean", tower="ijepa", norm="layernorm"
    ),
    "ViTMAEModel": MAE,
    "ViTMAEModel, patches": mean_of(MAE, "patches"),
    "PixioModel": PIXIO,
    "PixioModel, patches": mean_of(PIXIO, "patches"),
    "ViTModel, mean": mean_of(VIT, "mean"),
    "ViTModel, patches": mean_of(VIT, "patches"),
    "Dinov2WithRegistersModel, patches": mean_of(DINO, "patches"),
}
TEXTS: dict[str, Pooled] = {
    name: Pooled(build, kind, texts, tower, projection, "final_layer_norm", 0, TEXT)
    for name, build, kind, tower, projection in (
        ("CLIPModel, text", clip_model, "end", "text_model", "text_projection"),
        (
            "CLIPTextModelWithProjection",
            text_side("CLIPTextModelWithProjection"),
            "end",
            "text_model",
            "text_projection",
        ),
        ("CLIPTextModel", text_side("CLIPTextModel"), "end", "", None),
        (
            "MetaClip2TextModelWithProjection",
            text_side("MetaClip2TextModelWithProjection"),
            "end",
            "text_model",
            "text_projection",
        ),
        ("CLIPSegTextModel", text_side("CLIPSegTextModel"), "end", "", None),
        ("SiglipModel, text", dual("SiglipModel"), "last", "text_model", "text_model.head"),
        ("SiglipTextModel", text_side("SiglipTextModel"), "last", "", "head"),
        (
            "Siglip2Model, text",
            dual("Siglip2Model", flexible=True),
            "last",
            "text_model",
            "text_model.head",
        ),
    )
}
CASES: dict[str, Pooled] = {**POOLED, **TEXTS}
__all__ = ["CASES", "POOLED", "TEXTS", "Pooled", "double", "own_readout", "slow_parts"]


def double(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with its floats in float64."""
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def own_readout(case: Pooled, model: Any, batch: dict[str, Tensor], **options: Any) -> Tensor:
    """What the model itself says, as its users call it."""
    tower = model.get_submodule(case.tower)
    output = tower(**batch, **options)
    tokens = output.last_hidden_state
    if case.kind == "classes":
        return tokens[:, : case.prefix].mean(1)
    if case.kind in ("mean", "patches"):
        mask = batch.get("pixel_attention_mask", torch.ones(tokens.shape[:2])).bool()
        mask = mask & (torch.arange(tokens.shape[1]) >= _first(case))
        return torch.stack([row[kept].mean(0) for row, kept in zip(tokens, mask, strict=True)])
    if hasattr(model, "vision_proj"):
        return model.vision_proj(tokens[:, 0])
    if case.options == TEXT and hasattr(model, "get_text_features"):
        return model.get_text_features(**batch).pooler_output
    if hasattr(model, "get_image_features"):
        return model.get_image_features(**batch, **options).pooler_output
    if hasattr(model, "text_projection"):
        return model(**batch).text_embeds
    return output.pooler_output


def _first(case: Pooled) -> int:
    return case.prefix if case.kind == "patches" else 0


def _record(tower: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every module took and gave, the first time it ran."""
    taken: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, module in tower.named_modules():

        def keep(module: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            taken.setdefault(name, first)
            given.setdefault(name, output)

        module.register_forward_hook(keep, with_kwargs=True)
    tower(**batch)
    return taken, given


def _written(tower: Any, taken: Any, given: Any) -> dict[Unit, Tensor]:
    """What each unit writes to every token, (B, T, D)."""
    embedded = given["embeddings"]
    written = {Unit("embed"): embedded[0] if isinstance(embedded, tuple) else embedded}
    ends = ("self_attn.out_proj", "self_attn.projection", "attention.o_proj")
    ends += ("attention.output.dense",)
    paths = [name for name in given if name.endswith(ends) and not name.startswith("head")]
    for index, path in enumerate(paths):
        prefix = path[: path.index("self_attn" if "self_attn" in path else "attention")]
        block = tower.get_submodule(prefix.rstrip("."))
        scales = [
            getattr(getattr(block, name, None), "lambda1", torch.ones(1))
            for name in ("layer_scale1", "layer_scale2")
        ]
        linear, heads = tower.get_submodule(path), tower.config.num_attention_heads
        size = linear.in_features // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            out = taken[path][..., part] @ linear.weight[:, part].T + linear.bias / heads
            written[Unit("head", index, head)] = scales[0] * out
        mlp = prefix + ("mlp" if prefix + "mlp" in given else "output.dense")
        written[Unit("mlp", index)] = scales[1] * given[mlp]
    return written


def _normed(value: Tensor, stream: Tensor, norm: nn.LayerNorm) -> Tensor:
    """diag(γ) (I − 11ᵀ/D) u / σ of one token (D,), σ of the stream there."""
    sigma = ((stream - stream.mean()).square().mean() + norm.eps).sqrt()
    return norm.weight * (value - value.mean()) / sigma


def _alpha(head: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of the pooling query over one sample's normed tokens: (J, T)."""
    attention = head.attention
    query, keys, _ = attention.in_proj_weight.chunk(3)
    query_bias, key_bias, _ = attention.in_proj_bias.chunk(3)
    size = len(query) // attention.num_heads
    rows = []
    for j in range(attention.num_heads):
        part = slice(j * size, (j + 1) * size)
        asked = query[part] @ head.probe[0, 0] + query_bias[part]
        scores = torch.stack([asked @ (keys[part] @ t + key_bias[part]) for t in tokens])
        scores = scores / size**0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        rows.append(scores.exp() / scores.exp().sum())
    return torch.stack(rows)


def _places(case: Pooled, batch: dict[str, Tensor], row: int, length: int) -> list[int]:
    """The tokens of one sample that are read out."""
    if case.kind == "end":
        return [batch["input_ids"][row].tolist().index(EOS)]
    return {
        "first": [0],
        "twice": [0],
        "last": [length - 1],
        "mean": _real(batch, row, length),
        "patches": list(range(case.prefix, length)),
        "classes": list(range(case.prefix)),
    }.get(case.kind, list(range(length)))


def _real(batch: dict[str, Tensor], row: int, length: int) -> list[int]:
    """The tokens of one sample that are no padding."""
    mask = batch.get("pixel_attention_mask")
    return list(range(length)) if mask is None else mask[row].nonzero().flatten().tolist()


@torch.no_grad()
def slow_parts(case: Pooled, model: Any, batch: dict[str, Tensor]) -> dict[Unit, Tensor]:
    """x_u of every unit (B, d), float64; and under `output` what the model itself says."""
    model, batch = copy.deepcopy(model).double().eval(), double(batch)
    readout = own_readout(case, model, batch)
    tower = model.get_submodule(case.tower)
    taken, given = _record(tower, batch)
    norm, stream = tower.get_submodule(case.norm), taken[case.norm]
    projection = None if case.projection is None else model.get_submodule(case.projection).weight
    found: dict[Unit, list[Tensor]] = {}
    written = _written(tower, taken, given)
    for row in range(len(readout)):
        places = _places(case, batch, row, stream.shape[1])
        tokens, mask = stream[row], batch.get("pixel_attention_mask")
        if case.kind == "attention":
            normed = torch.stack([layer_norm(t, norm) for t in tokens])
            alpha = _alpha(tower.head, normed, None if mask is None else mask[row])
        for unit, value in written.items():
            parts = {t: _normed(value[row, t], tokens[t], norm) for t in places}
            if case.kind == "attention":
                x = torch.zeros(len(norm.weight), dtype=torch.float64)
                attention = tower.head.attention
                values = attention.in_proj_weight.chunk(3)[2]
                size = len(values) // attention.num_heads
                for j, weights in enumerate(alpha):
                    part = slice(j * size, (j + 1) * size)
                    pooled = sum(weights[t] * parts[t] for t in places)
                    x = x + attention.out_proj.weight[:, part] @ values[part] @ pooled
            else:
                x = sum(parts.values()) / len(places)
            if case.kind == "twice":
                once = layer_norm(tokens[0], norm)
                beta = norm.bias if unit.kind == "embed" else torch.zeros_like(norm.bias)
                x = _normed(x + beta, once, norm)
            found.setdefault(unit, []).append(x if projection is None else projection @ x)
    result = {unit: torch.stack(rows) for unit, rows in found.items()}
    if case.kind == "attention":
        result[Unit("pooler")] = given["head.mlp"][:, 0]
    result[Unit("output")] = readout
    return result
