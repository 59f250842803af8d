"""ViT, DeiT, DINO: the class token after the final norm, layer scale where there is one.

I-JEPA has no such token, and is read out by the mean of all.
"""

from typing import Any

from torch import Tensor, nn

from ..anatomy import LayerAnatomy, TowerAnatomy, unwrapped
from ..readouts import FIRST_TOKEN, Mean
from ..registry import register_architecture
from .parts import first_path, part_at

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


@register_architecture(
    "ViTModel",
    "ViTForImageClassification",
    "DeiTModel",
    "DeiTForImageClassification",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "IJepaModel",
)
def _image(model: Any) -> TowerAnatomy:
    """Of a model for image classification, too, the token and not the logits."""
    inside = next((name for name in ("vit", "deit") if hasattr(model, name)), "")
    tower: Any = model.get_submodule(inside)
    norm = first_path(tower, FINAL_NORM)
    blocks: Any = part_at(tower, first_path(tower, LAYERS))
    pooler, prefix = getattr(tower, "pooler", None), _prefix_tokens(model, tower)
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        embedding=tower.embeddings,
        layers=tuple(_layer(block) for block in blocks),
        final_norm=part_at(tower, norm),
        projection=None,
        projection_path=".".join(filter(None, [inside, norm])),
        num_heads=part_at(blocks[0], first_path(blocks[0], HEADS)),
        reads_tokens=True,
        outside=() if pooler is None else (pooler,),
        readout=FIRST_TOKEN if prefix else Mean(),
        prefix_tokens=prefix,
    )


def _prefix_tokens(model: Any, tower: Any) -> int:
    """The class token, DeiT's for distillation, and registers: all that stand for no patch."""
    if getattr(tower.embeddings, "cls_token", None) is None:
        return 0
    distilled = getattr(tower.embeddings, "distillation_token", None) is not None
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return 1 + distilled + registers


def _layer(block: nn.Module) -> LayerAnatomy:
    return LayerAnatomy(
        module=block,
        output_projection=part_at(block, first_path(block, OUTPUT_PROJECTION)),
        mlp=part_at(block, first_path(block, MLP)),
        mlp_projection=part_at(block, first_path(block, MLP_PROJECTION)),
        attention_scale=_layer_scale(block, "layer_scale1"),
        mlp_scale=_layer_scale(block, "layer_scale2"),
    )


def _layer_scale(block: nn.Module, name: str) -> Tensor | None:
    scale: Any = unwrapped(getattr(block, name, nn.Identity()))
    return getattr(scale, "lambda1", None)
