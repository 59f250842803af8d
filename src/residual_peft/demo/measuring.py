"""The bundled model on its own world: embeddings, zero-shot accuracy per attribute."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from .drawing import draw
from .world import TEMPLATES, prompts, sample_scenes


def pixels(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) -> pixel values in [-1, 1], as the image processor gives."""
    return images.float() / 127.5 - 1


def image_embeddings(model: CLIPModel, images: Tensor) -> Tensor:
    """Unit-norm readouts (B, d) of uint8 images."""
    readout = model.get_image_features(pixel_values=pixels(images)).pooler_output
    return F.normalize(readout, dim=-1)


def text_embeddings(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Unit-norm embeddings (M, d) of texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


@torch.no_grad()
def zero_shot_accuracy(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    *,
    images_per_task: int = 1000,
    seed: int = 10**9,
    report: Callable[[str], object] = lambda name: None,
) -> dict[str, float]:
    """Zero-shot accuracy per attribute on held-out images, with the ensemble of its templates.

    Pretraining draws with small seeds; `report` is called with each attribute's name when it is
    done.
    """
    model.eval()
    result = {}
    for index, (name, templates) in enumerate(TEMPLATES.items()):
        generator = torch.Generator().manual_seed(seed + index)
        scene = sample_scenes(images_per_task, generator, only=name)
        drawn = draw(scene, generator)
        image = torch.cat([image_embeddings(model, part) for part in drawn.split(500)])
        each = [text_embeddings(model, tokenizer, prompts(name, t)) for t in templates]
        text = torch.stack(each).mean(0)
        found = (image @ F.normalize(text, dim=-1).T).argmax(1)
        result[name] = (found == scene.values[name]).float().mean().item()
        report(name)
    return result
