"""Where transformers' towers keep their parts: those that read one token after a final LayerNorm.

A family is known by its classes, and its parts and sizes by its modules, never by a table of sizes.
transformers moves modules between releases: each part is looked for wherever one of them had it.
"""

from typing import Any

from torch import Tensor, nn

from .anatomy import LayerAnatomy, TowerAnatomy, register_architecture, unwrapped
from .errors import ResiDualError

CLIP_LIKE = (
    "CLIPModel",
    "CLIPVisionModelWithProjection",
    "CLIPVisionModel",
    "MetaClip2Model",
    "MetaClip2VisionModelWithProjection",
    "MetaClip2VisionModel",
    "AltCLIPModel",
    "AltCLIPVisionModel",
    "ChineseCLIPModel",
    "ChineseCLIPVisionModel",
    "CLIPSegModel",
    "CLIPSegVisionModel",
)
VIT_LIKE = (
    "ViTModel",
    "ViTForImageClassification",
    "DeiTModel",
    "DeiTForImageClassification",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
)

# where transformers 5.6 and later keep the parts of a ViT, the newest place first
LAYERS = ("layers", "encoder.layer", "model.layer", "layer")
FINAL_NORM = ("layernorm", "norm")
OUTPUT_PROJECTION = ("attention.o_proj", "attention.output.dense")
MLP = ("mlp", "output.dense")  # `output` adds the stream itself; its dense layer is the MLP's end
MLP_PROJECTION = ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "output.dense")
HEADS = (
    "attention.num_attention_heads",
    "attention.num_heads",
    "attention.attention.num_attention_heads",
)


@register_architecture(*CLIP_LIKE)
def _clip(model: Any) -> TowerAnatomy:
    """CLIP and its relatives: the class token, a pre-norm encoder, final norm, projection."""
    # up to transformers 5.3 or so CLIPVisionModel kept its parts one level down
    nested = getattr(model, "vision_model", None)
    tower = model if nested is None else getattr(nested, "vision_model", nested)
    projection = getattr(model, "visual_projection", None)
    inside = next(name for name, module in model.named_modules() if module is tower)
    layers = tuple(
        LayerAnatomy(
            module=layer,
            output_projection=unwrapped(layer.self_attn.out_proj),
            mlp=unwrapped(layer.mlp),
            mlp_projection=unwrapped(unwrapped(layer.mlp).fc2),
        )
        for layer in tower.encoder.layers
    )
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.pre_layrnorm),
        layers=layers,
        final_norm=unwrapped(tower.post_layernorm),
        projection=None if projection is None else unwrapped(projection),
        projection_path="visual_projection"
        if projection is not None
        else ".".join(filter(None, [inside, "post_layernorm"])),
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
    )


@register_architecture(*VIT_LIKE)
def _vit(model: Any) -> TowerAnatomy:
    """ViT, DeiT, DINO: the class token after the final norm; layer scale where there is one.

    Of a model for image classification, that token and not the logits.
    """
    inside = next((name for name in ("vit", "deit") if hasattr(model, name)), "")
    tower: Any = model.get_submodule(inside)
    norm = _first(tower, FINAL_NORM)
    blocks: Any = _part(tower, _first(tower, LAYERS))
    pooler = getattr(tower, "pooler", None)
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.embeddings),
        layers=tuple(_vit_layer(block) for block in blocks),
        final_norm=_part(tower, norm),
        projection=None,
        projection_path=".".join(filter(None, [inside, norm])),
        num_heads=_part(blocks[0], _first(blocks[0], HEADS)),
        reads_tokens=True,
        outside=() if pooler is None else (pooler,),
    )


def _vit_layer(block: nn.Module) -> LayerAnatomy:
    return LayerAnatomy(
        module=block,
        output_projection=_part(block, _first(block, OUTPUT_PROJECTION)),
        mlp=_part(block, _first(block, MLP)),
        mlp_projection=_part(block, _first(block, MLP_PROJECTION)),
        attention_scale=_layer_scale(block, "layer_scale1"),
        mlp_scale=_layer_scale(block, "layer_scale2"),
    )


def _layer_scale(block: nn.Module, name: str) -> Tensor | None:
    scale: Any = unwrapped(getattr(block, name, nn.Identity()))
    return getattr(scale, "lambda1", None)


def _part(module: nn.Module, path: str) -> Any:
    """Follow a path of attributes, taking PEFT's layers off on the way."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
        found = found if found is None else unwrapped(found)
    return found


def _first(module: nn.Module, paths: tuple[str, ...]) -> str:
    """Return the first of the paths that leads to something.

    Raises:
        ResiDualError: none does.
    """
    for path in paths:
        if _part(module, path) is not None:
            return path
    raise ResiDualError(
        f"{type(module).__name__} has none of {', '.join(paths)}, where transformers 5.6 and later "
        "keep that part; describe the model with TowerAnatomy and register_architecture."
    )
