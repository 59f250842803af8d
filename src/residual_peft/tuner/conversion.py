"""One backbone in two libraries: open_clip's weights in transformers, and adapters for either."""

from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from ..bases.fingerprint import Fingerprint
from ..errors import ResiDualError
from ..hub.files import PathLike, atomic_directory, write_json, write_tensors
from ..towers.anatomy import unwrapped
from ..towers.families.open_clip import block_weights, image_weights, is_open_clip
from ..towers.registry import base_model, find_tower
from . import ResiDualConfig
from .loading import check_config
from .readout.placement import check_saved
from .saved import PEFT_PREFIX, SavedWeights


def convert_adapter(directory: PathLike, model: nn.Module, output: PathLike) -> Path:
    """Write a saved adapter as it would have been saved from another library's copy of the model.

    Its numbers stay what they are: the basis is kept in terms of the weights, which are the same in
    open_clip and transformers. `load_adapter` and PEFT load the adapter on either copy without this
    step; what changes is what its adapter_config.json says to others.

    Args:
        directory: of an adapter in readout mode, from either library.
        model: the other library's copy of the model that it was trained on; it stays as it is.
        output: where the new adapter goes, whole or not at all.

    Returns:
        `output`.

    Raises:
        ResiDualError: `directory` holds no whole adapter in readout mode, or it belongs to other
            weights than the model's.
    """
    config = check_config(directory)
    if config.get("mode") != "readout":
        raise ResiDualError(
            f"'{directory}' holds an adapter with mode={config.get('mode')!r}; wanted 'readout': "
            "a stream adapter's gains belong to Linears, which open_clip fuses."
        )
    anatomy = find_tower(base_model(model), config.get("side"), config.get("readout"))
    saved = Fingerprint.from_dict(config.get("fingerprint") or {})
    saved.check(anatomy, f"the adapter in '{directory}'")
    read = ResiDualConfig.from_pretrained(str(directory))
    check_saved(read, anatomy, [saved.to_dict()])
    base: Any = anatomy.model
    theirs, path = Fingerprint.of(anatomy, ()), anatomy.projection_path
    config |= {
        "target_modules": [path],
        "base_model_name_or_path": getattr(base, "name_or_path", None) or None,
        # the digests stay: those of a copy in half precision would know no other copy
        "fingerprint": {
            **saved.to_dict(),
            "name": theirs.name,
            "architecture": theirs.architecture,
        },
        "auto_mapping": {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__,
        },
    }
    # without the name of the adapter, as PEFT saves them
    weights = SavedWeights.in_directory(directory).values(path)
    tensors = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in weights.items()}
    with atomic_directory(output) as temporary:
        write_json(temporary / CONFIG_NAME, config)
        write_tensors(temporary / SAFETENSORS_WEIGHTS_NAME, tensors, {"format": "pt"})
    return Path(output)


def open_clip_to_transformers(model: nn.Module) -> CLIPModel:
    """Copy an open_clip model's weights into a `CLIPModel` of transformers that computes the same.

    Layer scale is folded into the linear maps before it. What the copy computes is equal within
    rounding; the tokenizer and the image processor are transformers' own, such as CLIP's.

    Args:
        model: a CLIP or CustomTextCLIP of open_clip; adapters in it are left out.

    Returns:
        The copy, in eval mode, in the dtype of the model's logit_scale and on its device.

    Raises:
        ResiDualError: it has something that `CLIPModel` cannot express.
    """
    source: Any = base_model(model)
    if not is_open_clip(source):
        raise ResiDualError(
            f"wanted a CLIP or CustomTextCLIP of open_clip, got a {type(source).__module__}."
            f"{type(source).__name__}."
        )
    visual: Any = find_tower(source, "image").tower
    text: Any = getattr(source, "text", source)
    scale: Tensor = source.logit_scale
    config = _config(source, visual, text)
    # cast before loading, which copies into what is there and would round float64
    copy: Any = CLIPModel(config).to(scale.device, scale.dtype)
    found = copy.load_state_dict(_state(source, visual, text), strict=False)
    missing = [name for name in found.missing_keys if "position_ids" not in name]
    if missing or found.unexpected_keys:
        raise ResiDualError(
            f"transformers' CLIPModel lacks {found.unexpected_keys} and wants {missing}: this "
            "release keeps its weights elsewhere."
        )
    return copy.eval()


def _config(model: Any, visual: Any, text: Any) -> CLIPConfig:
    """The sizes of a model, read from its modules."""
    pooling = getattr(model, "text_pool_type", None) or getattr(text, "pool_type", None)
    _check(model, visual, text, pooling)
    end = getattr(model, "text_eos_id", None) or getattr(text, "eos_id", None)
    width = visual.proj.shape[1]
    return CLIPConfig(
        projection_dim=width,
        vision_config={
            **_sizes(visual.transformer, visual.ln_post),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": width,
        },
        text_config={
            **_sizes(text.transformer, text.ln_final),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": len(text.positional_embedding),
            "projection_dim": width,
            "bos_token_id": None,
            "pad_token_id": None,
            # with 2, CLIPModel reads at the highest token, as open_clip does
            "eos_token_id": 2 if pooling == "argmax" else end,
        },
    )


def _check(model: Any, visual: Any, text: Any, pooling: str | None) -> None:
    """Refuse what `CLIPModel` cannot express, and name all of it."""
    towers = [tower.transformer for tower in (visual, text) if hasattr(tower, "transformer")]
    blocks = [block for tower in towers for block in getattr(tower, "resblocks", ())]
    image_size, patch_size = visual.image_size, visual.patch_size
    wrong = {
        "no ln_pre": not isinstance(unwrapped(visual.ln_pre), nn.LayerNorm),
        "no projection of images": visual.proj is None,
        "images or patches that are not square": len({*image_size}) > 1 or len({*patch_size}) > 1,
        "a text tower that is not open_clip's own": not hasattr(text, "token_embedding")
        or any(type(block).__name__ != "ResidualAttentionBlock" for block in blocks),
        f"the text pooling {pooling!r}": pooling not in ("argmax", "eos"),
        "a text tower without a causal mask": getattr(text, "attn_mask", None) is None,
        "a class token or a padding mask in its text tower": getattr(text, "cls_emb", None)
        is not None
        or getattr(text, "use_pad_mask", False),
        "a text projection that is no plain matrix": not isinstance(
            getattr(text, "text_projection", None), nn.Parameter
        ),
        "several activations, or one that is neither GELU nor QuickGELU": len(
            kinds := {_activation(block) for block in blocks}
        )
        != 1
        or None in kinds,
        "a logit_bias": getattr(model, "logit_bias", None) is not None,
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise ResiDualError(
            f"this {type(model).__name__} of open_clip has {'; '.join(found)}, which transformers' "
            "CLIPModel cannot express: keep the model in open_clip, where its image tower can be "
            "decomposed and adapted just as well."
        )


def _activation(block: Any) -> str | None:
    """What transformers calls a block's activation."""
    module = block.mlp.gelu
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    return "gelu" if isinstance(module, nn.GELU) and module.approximate == "none" else None


def _sizes(transformer: Any, norm: Any) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": unwrapped(block.attn).num_heads,
        "intermediate_size": unwrapped(block.mlp.c_fc).out_features,
        "hidden_act": _activation(block),
        "layer_norm_eps": unwrapped(norm).eps,
    }


def _state(model: Any, visual: Any, text: Any) -> dict[str, Tensor]:
    """All weights, under transformers' names."""
    found: dict[str, Tensor] = {
        "logit_scale": model.logit_scale.reshape(()),
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": text.text_projection.T,
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positional_embedding,
        "text_model.final_layer_norm.weight": text.ln_final.weight,
        "text_model.final_layer_norm.bias": text.ln_final.bias,
    }
    found |= {f"vision_model.{name}": part for name, part in image_weights(visual).items()}
    found |= {f"text_model.{name}": part for name, part in block_weights(text.transformer).items()}
    with torch.no_grad():
        return {name: tensor.detach().clone() for name, tensor in found.items()}
