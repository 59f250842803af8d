"""Tiny dual encoders of every family, which all know one tokenizer's characters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models import TOWERS, Size, clip_like, clip_model
from tests.pooled import POOLED, dual
from tests.tokenizers import clip_tokenizer

CONTEXT = 24


BUILDERS: dict[str, Callable[..., Any]] = {
    "CLIPModel": clip_model,
    "SiglipModel": dual("SiglipModel"),
    "Siglip2Model": dual("Siglip2Model", flexible=True),
    "MetaClip2Model": clip_like("MetaClip2"),
    "AltCLIPModel": clip_like("AltCLIP"),
    "ChineseCLIPModel": clip_like("ChineseCLIP"),
    "CLIPSegModel": clip_like("CLIPSeg"),
    "BlipModel": dual("BlipModel", projection_dim=16),
    "BlipForImageTextRetrieval": dual("BlipForImageTextRetrieval", image_text_hidden_size=16),
}


def processor(name: str) -> Any:
    """The PIL image processor of a tiny model."""
    if name.startswith("Siglip2"):
        from transformers.models.siglip2.image_processing_pil_siglip2 import (
            Siglip2ImageProcessorPil,
        )

        return Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def saved(name: str, folder: Path, size: Size | None = None) -> Path:
    """A tiny random model as somebody would find it on the Hub."""
    build: Any = TOWERS.get(name) or BUILDERS.get(name) or POOLED[name].build
    build(size).save_pretrained(folder)
    processor(name).save_pretrained(folder)
    if name in BUILDERS:
        clip_tokenizer().save_pretrained(folder)
    return folder
