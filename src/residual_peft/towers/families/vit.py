"""ViT, MSN, MAE, DeiT, DINO: the class token after the final norm, layer scale where there is one.

Pixio has several, whose mean is read; I-JEPA has none, and is read out by the mean of all.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ResiDualError
from ..anatomy import LayerAnatomy, TowerAnatomy, unwrapped
from ..readouts import FIRST_TOKEN, Mean, Readout
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
INSIDE = ("vit", "deit", "dinov2", "dinov2_with_registers", "ijepa")


@register_architecture(
    "ViTModel",
    "ViTForImageClassification",
    "ViTMSNModel",
    "ViTMSNForImageClassification",
    "ViTMAEModel",
    "PixioModel",
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2Model",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification",
    "DINOv3ViTModel",
    "IJepaModel",
    "IJepaForImageClassification",
)
def _image(model: Any) -> TowerAnatomy:
    """Of a model for image classification, too, the token and not the logits."""
    inside = next((name for name in INSIDE if hasattr(model, name)), "")
    tower: Any = model.get_submodule(inside)
    norm = first_path(tower, FINAL_NORM)
    blocks: Any = part_at(tower, first_path(tower, LAYERS))
    pooler, prefix = getattr(tower, "pooler", None), _prefix_tokens(model, tower)
    masks = hasattr(model.config, "mask_ratio")
    if masks and model.config.mask_ratio:
        raise ResiDualError(
            f"{type(model).__name__}: its config has mask_ratio={model.config.mask_ratio}, so that "
            "it sees other patches each time; load it with mask_ratio=0.0."
        )
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
        readout=_readout(tower),
        prefix_tokens=prefix,
        read=_in_order if masks else None,
    )


def _class_tokens(tower: Any) -> int:
    token = getattr(tower.embeddings, "cls_token", None)
    return 0 if token is None else int(token.shape[1])


def _readout(tower: Any) -> Readout:
    count = _class_tokens(tower)
    if count > 1:
        return Mean(name=None, end_before=count)
    return FIRST_TOKEN if count else Mean()


def _prefix_tokens(model: Any, tower: Any) -> int:
    """Class tokens, DeiT's for distillation, and registers: all that stand for no patch."""
    if not (count := _class_tokens(tower)):
        return 0
    distilled = getattr(tower.embeddings, "distillation_token", None) is not None
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return count + distilled + registers


def _in_order(anatomy: TowerAnatomy, arguments: Mapping[str, Any]) -> Tensor:
    """MAE's readout: where nothing is masked, too, it shuffles the patches by noise of its own.

    Noise that rises leaves them as they are, so that a readout is the same to the digit each time.
    """
    tower: Any = anatomy.tower
    images = arguments["pixel_values"]
    height, width = tower.embeddings.patch_embeddings.patch_size
    count = (images.shape[-2] // height) * (images.shape[-1] // width)
    noise = torch.arange(count, device=images.device).expand(images.shape[0], -1)
    output = tower(**arguments, noise=noise, return_dict=True)
    return anatomy.readout.read(output.last_hidden_state, None)


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
