"""Where transformers' towers keep their parts: pre-norm encoders with a final LayerNorm.

A family is known by its classes, and its parts and sizes by its modules, never by a table of sizes.
transformers moves modules between releases: each part is looked for wherever one of them had it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ResiDualError
from .anatomy import LayerAnatomy, TowerAnatomy
from .pooling import AttentionPooling, EndToken, FirstToken, MeanPooling, SecondNorm
from .registry import UNSUITED, register_architecture, unwrapped

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
    "IJepaModel",
)
SIGLIP_LIKE = ("SiglipModel", "SiglipVisionModel", "Siglip2Model", "Siglip2VisionModel")
# text towers whose LayerNorms stand behind each sum, so that their streams are no sums
POST_NORM = ("AltCLIPModel", "ChineseCLIPModel", "BlipForImageTextRetrieval", "BlipModel")
UNSUITED["text"].update(
    dict.fromkeys(
        POST_NORM,
        "is post-norm: a LayerNorm after each sum rescales all that was written before, so that "
        'what its heads write does not add up. Adapt the image side (side="image")',
    )
)
TEXT = (
    "CLIPModel",
    "CLIPTextModelWithProjection",
    "CLIPTextModel",
    "MetaClip2Model",
    "MetaClip2TextModelWithProjection",
    "MetaClip2TextModel",
    "CLIPSegModel",
    "CLIPSegTextModel",
    "SiglipModel",
    "SiglipTextModel",
    "Siglip2Model",
    "Siglip2TextModel",
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
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.pre_layrnorm),
        layers=_encoder_layers(tower),
        final_norm=unwrapped(tower.post_layernorm),
        projection=None if projection is None else unwrapped(projection),
        projection_path="visual_projection"
        if projection is not None
        else ".".join(filter(None, [inside, "post_layernorm"])),
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
    )


def _encoder_layers(tower: Any) -> tuple[LayerAnatomy, ...]:
    """The layers of CLIP's kind of encoder."""
    return tuple(
        LayerAnatomy(
            module=layer,
            output_projection=_part(
                layer, _first(layer, ("self_attn.out_proj", "self_attn.projection"))
            ),
            mlp=unwrapped(layer.mlp),
            mlp_projection=_part(layer, "mlp.fc2"),
        )
        for layer in tower.encoder.layers
    )


def _path_of(model: nn.Module, part: nn.Module) -> str:
    """Name a module by where it is, or PEFT's layer around it."""
    return next(name for name, module in model.named_modules() if unwrapped(module) is part)


@register_architecture(*SIGLIP_LIKE)
def _siglip(model: Any) -> TowerAnatomy:
    """SigLIP and SigLIP 2: attention pooling over the normed tokens; without it, their mean."""
    tower = getattr(model, "vision_model", model)
    head = unwrapped(tower.head) if getattr(tower, "use_head", True) else None
    norm = unwrapped(tower.post_layernorm)
    flexible = type(model).__name__.startswith("Siglip2")
    mask = "pixel_attention_mask" if flexible else None
    pooling: Any = MeanPooling(mask=mask)
    if head is not None:
        pooling = AttentionPooling(head, unwrapped(head.mlp), _part(head, "mlp.fc2"))
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.embeddings),
        layers=_encoder_layers(tower),
        final_norm=norm,
        projection=None,
        projection_path=_path_of(model, norm if head is None else head),
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
        reads_tokens=head is None,
        inputs=("pixel_values", "pixel_attention_mask", "spatial_shapes")
        if flexible
        else ("pixel_values",),
        pooling=pooling,
        readout="mean" if head is None else None,
        prefix_tokens=0,
        mask=mask,
    )


@register_architecture("BlipForImageTextRetrieval", "BlipModel")
def _blip(model: Any) -> TowerAnatomy:
    """BLIP: the class token, normed once for retrieval and twice for `BlipModel`."""
    tower, norm = model.vision_model, unwrapped(model.vision_model.post_layernorm)
    retrieval = hasattr(model, "vision_proj")
    path = "vision_proj" if retrieval else "visual_projection"
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.embeddings),
        layers=_encoder_layers(tower),
        final_norm=norm,
        projection=_part(model, path),
        projection_path=path,
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
        read=_blip_retrieval if retrieval else None,
        pooling=None if retrieval else SecondNorm(norm),
        prefix_tokens=1 if retrieval else None,
    )


def _blip_retrieval(anatomy: TowerAnatomy, given: Mapping[str, Any]) -> Tensor:
    """The readout that is compared with texts: its class has no `get_image_features`."""
    model: Any = anatomy.model
    tokens = model.vision_model(**given, return_dict=True).last_hidden_state
    readout: Tensor = model.vision_proj(tokens[:, 0, :])
    return readout


@register_architecture(*TEXT, side="text")
def _text(model: Any) -> TowerAnatomy:
    """The text towers of CLIP and SigLIP: one token after the final norm, then a projection."""
    nested = getattr(model, "text_model", None)
    tower = model if nested is None else getattr(nested, "text_model", nested)
    norm = unwrapped(tower.final_layer_norm)
    head = getattr(tower, "head", None)
    token: FirstToken | EndToken = FirstToken(-1)  # SigLIP reads the last one, whatever it is
    if head is None:
        eos = tower.eos_token_id
        # 2 stands in CLIP's old configs, which were wrong; MetaCLIP 2's is 2
        wrong = eos == 2 and not type(tower).__name__.startswith("MetaClip2")
        token = EndToken(None if wrong else eos)
        head = getattr(model, "text_projection", None)
    projection = None if head is None else unwrapped(head)
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=unwrapped(tower.embeddings),
        layers=_encoder_layers(tower),
        final_norm=norm,
        projection=projection,
        projection_path=_path_of(model, norm if projection is None else projection),
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
        readout_token=token,
        reads_tokens=projection is None,
        side="text",
        inputs=("input_ids", "attention_mask", "position_ids"),
        prefix_tokens=0,
        mask="attention_mask",
    )


@register_architecture(*VIT_LIKE)
def _vit(model: Any) -> TowerAnatomy:
    """ViT, DeiT, DINO: the class token after the final norm; layer scale where there is one.

    Of a model for image classification, that token and not the logits. I-JEPA has no such token,
    and is read out by the mean of all.
    """
    inside = next((name for name in ("vit", "deit") if hasattr(model, name)), "")
    tower: Any = model.get_submodule(inside)
    norm = _first(tower, FINAL_NORM)
    blocks: Any = _part(tower, _first(tower, LAYERS))
    pooler, prefix = getattr(tower, "pooler", None), _prefix_tokens(model, tower)
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
        pooling=None if prefix else MeanPooling(),
        readout=None if prefix else "mean",
        prefix_tokens=prefix,
    )


def _prefix_tokens(model: Any, tower: Any) -> int:
    """The class token, DeiT's for distillation, and registers: all that stand for no patch."""
    if getattr(tower.embeddings, "cls_token", None) is None:
        return 0
    distilled = getattr(tower.embeddings, "distillation_token", None) is not None
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return 1 + distilled + registers


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
