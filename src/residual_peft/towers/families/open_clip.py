"""Where the models of the package open_clip keep the parts of their image tower.

Their class is CLIP or CustomTextCLIP, their `visual` a VisionTransformer whose projection is a
parameter and whose attention is fused. Nothing here imports open_clip.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...errors import ResiDualError
from ..anatomy import LayerAnatomy, ParameterProjection, TowerAnatomy, unwrapped
from ..registry import register_architecture

CLASSES = ("CLIP", "CustomTextCLIP")


@register_architecture(*CLASSES)
def _open_clip(model: Any) -> TowerAnatomy:
    """A VisionTransformer: the class token, a pre-norm encoder, final norm, projection."""
    visual: Any = unwrapped(getattr(model, "visual", nn.Identity()))
    _check_tower(type(model).__name__, visual)
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=visual,
        embedding=unwrapped(visual.ln_pre),
        layers=tuple(
            LayerAnatomy(
                module=block,
                output_projection=unwrapped(block.attn).out_proj,
                mlp=unwrapped(block.mlp),
                mlp_projection=unwrapped(block.mlp.c_proj),
                attention_scale=getattr(unwrapped(block.ls_1), "gamma", None),
                mlp_scale=getattr(unwrapped(block.ls_2), "gamma", None),
                attention=unwrapped(block.attn),
            )
            for block in visual.transformer.resblocks
        ),
        final_norm=unwrapped(visual.ln_post),
        projection=None if visual.proj is None else ParameterProjection(visual, "proj"),
        projection_path="visual",
        num_heads=visual.transformer.resblocks[0].attn.num_heads,
        read=_read,
        whole=True,
        weights=_weights,
    )


def is_open_clip(model: nn.Module) -> bool:
    """Whether a model is one of open_clip's dual encoders: others are called CLIP as well."""
    visual = unwrapped(getattr(model, "visual", nn.Identity()))
    named = any(cls.__name__ in CLASSES for cls in type(model).__mro__)
    return named and type(visual).__module__.startswith("open_clip")


def _check_tower(name: str, visual: Any) -> None:
    """Refuse image towers of other kinds."""
    kind = f"{type(visual).__module__}.{type(visual).__name__}"
    if not kind.startswith("open_clip.") or type(visual).__name__ != "VisionTransformer":
        raise ResiDualError(
            f"{name}: its image tower is a {kind}; wanted open_clip's VisionTransformer, as "
            'open_clip.create_model("ViT-B-32") has it (no ResNet, no tower of timm). Load timm\'s '
            "towers and other packages' models with transformers."
        )
    if visual.attn_pool is not None:
        raise _other(name, "an attention pooling (attn_pool)")
    if visual.pool_type != "tok":
        raise _other(name, f"pool_type={visual.pool_type!r}")
    for index, block in enumerate(visual.transformer.resblocks):
        if not isinstance(unwrapped(block.attn), nn.MultiheadAttention):
            raise _other(
                name,
                f"a {type(block).__name__} in layer {index} (block_type='custom', qk_norm, "
                "scale_heads, scale_attn or scale_fc)",
            )


def _other(name: str, has: str) -> ResiDualError:
    return ResiDualError(
        f"{name}: its image tower has {has}; wanted open_clip's VisionTransformer with the class "
        "token as its readout (pool_type='tok') and plain blocks."
    )


def _read(anatomy: TowerAnatomy, arguments: Mapping[str, Any]) -> Tensor:
    """The readout of images: its forward takes `image`, and normalizes."""
    model: Any = anatomy.model
    tower: Any = anatomy.tower
    images = arguments["pixel_values"]
    if tuple(images.shape[-2:]) != tuple(tower.image_size):
        wanted = " x ".join(map(str, tower.image_size))
        raise ValueError(f"wanted the image size {wanted}")  # `run_tower` says the rest
    output = model.encode_image(images)
    return output[0] if isinstance(output, tuple) else output


def _weights(anatomy: TowerAnatomy) -> dict[str, Tensor]:
    """The tower's weights under the names and in the shapes that its copy in transformers has."""
    found = {f"tower.{name}": tensor for name, tensor in image_weights(anatomy.tower).items()}
    if anatomy.projection is not None:
        found["projection.weight"] = anatomy.projection.weight
    return found


def image_weights(visual: Any) -> dict[str, Tensor]:
    """A VisionTransformer's weights but the projection, as transformers' CLIP names them."""
    found: dict[str, Tensor] = {
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.patch_embedding.weight": unwrapped(visual.conv1).weight,
        "embeddings.position_embedding.weight": visual.positional_embedding,
        **_named("pre_layrnorm", visual.ln_pre),  # sic
        **_named("post_layernorm", visual.ln_post),
    }
    return {**found, **block_weights(visual.transformer)}


def block_weights(transformer: Any) -> dict[str, Tensor]:
    """The weights of all blocks: the in-projection cut in three, layer scale folded in."""
    found: dict[str, Tensor] = {}
    for index, block in enumerate(transformer.resblocks):
        name, attention = f"encoder.layers.{index}", unwrapped(block.attn)
        for kind in ("weight", "bias"):
            parts = getattr(attention, f"in_proj_{kind}").chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{name}.self_attn.{letter}_proj.{kind}"] = part
        found |= _named(f"{name}.self_attn.out_proj", attention.out_proj, block.ls_1)
        found |= _named(f"{name}.layer_norm1", block.ln_1)
        found |= _named(f"{name}.layer_norm2", block.ln_2)
        found |= _named(f"{name}.mlp.fc1", block.mlp.c_fc)
        found |= _named(f"{name}.mlp.fc2", block.mlp.c_proj, block.ls_2)
    return found


def _named(name: str, module: Any, layer_scale: Any = None) -> dict[str, Tensor]:
    """The weight and bias of a module, if it has any, times the layer scale after it."""
    module = unwrapped(module)
    scale = None if layer_scale is None else getattr(unwrapped(layer_scale), "gamma", None)
    found = {}
    for kind in ("weight", "bias"):
        value: Tensor | None = getattr(module, kind, None)
        if value is None:
            continue
        if scale is not None:
            value = (scale[:, None] if value.ndim == 2 else scale) * value
        found[f"{name}.{kind}"] = value.detach()
    return found
