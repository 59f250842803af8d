"""CLIP and its relatives: the class token of images, the end of a text, a pre-norm encoder."""

from typing import Any

from ..anatomy import TowerAnatomy
from ..readouts import FIRST_TOKEN, EndToken
from ..registry import UNSUITED, register_architecture
from .parts import POST_NORM, encoder_tower, nested, text_tower

UNSUITED["text"].update(dict.fromkeys(("AltCLIPModel", "ChineseCLIPModel"), POST_NORM))


@register_architecture(
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
def _image(model: Any) -> TowerAnatomy:
    tower = nested(model, "vision_model")
    return encoder_tower(
        model,
        tower,
        tower.post_layernorm,
        getattr(model, "visual_projection", None),
        FIRST_TOKEN,
        embedding=tower.pre_layrnorm,
    )


@register_architecture(
    "CLIPModel",
    "CLIPTextModelWithProjection",
    "CLIPTextModel",
    "MetaClip2Model",
    "MetaClip2TextModelWithProjection",
    "MetaClip2TextModel",
    "CLIPSegModel",
    "CLIPSegTextModel",
    side="text",
)
def _text(model: Any) -> TowerAnatomy:
    tower = nested(model, "text_model")
    # 2 stands in CLIP's old configs, which were wrong; MetaCLIP 2's is 2
    wrong = tower.eos_token_id == 2 and not type(tower).__name__.startswith("MetaClip2")
    token = EndToken(token_id=None if wrong else tower.eos_token_id)
    return text_tower(model, tower, getattr(model, "text_projection", None), token)
