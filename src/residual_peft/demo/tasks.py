"""Tasks for the bundled model: attributes of its own world, with its accuracy, and handwriting."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PillowImage
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ..errors import ResiDualError
from .drawing import draw
from .world import ATTRIBUTES, TEMPLATES, Scene, prompts, sample_scenes

HANDWRITING_TEMPLATES = TEMPLATES["digit"]
"""Prompts for handwriting: the ones that the world uses for printed digits."""


def _dataset(images: list[PillowImage.Image], labels: list[int], names: list[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


# pretraining draws with seeds from 0 up, its own measurements with 10^9 and up
_HELD_OUT = 2 * 10**9


def _drawn(size: int, seed: int, only: str | None) -> tuple[Scene, list[PillowImage.Image]]:
    generator = torch.Generator().manual_seed(_HELD_OUT + seed)
    scene = sample_scenes(size, generator, only=only)
    arrays = draw(scene, generator).permute(0, 2, 3, 1).numpy()
    return scene, [PillowImage.fromarray(array) for array in arrays]


def world_task(attribute: str, size: int = 1000, *, seed: int = 0) -> Dataset:
    """Images of the world, labelled with one attribute.

    Args:
        attribute: one of `ATTRIBUTES`: color, background, position, size, texture, shape, digit,
            letter or count.
        size: how many images.
        seed: of the drawing; the same seed draws the same images, none of them seen in training.

    Returns:
        A dataset with the columns `image` (40 x 40 RGB) and `label` (ClassLabel).

    Raises:
        ResiDualError: there is no such attribute, or `size` is not positive.

    Examples:
        >>> world_task("color", 3).features["label"].names[:3]
        ['red', 'orange', 'yellow']
    """
    if size < 1:
        raise ResiDualError(f"wanted at least one image, got size={size}.")
    scene, images = _drawn(size, seed, attribute)
    return _dataset(images, scene.values[attribute].tolist(), list(ATTRIBUTES[attribute]))


def world_images(size: int = 2000, *, seed: int = 0) -> Dataset:
    """Unlabelled images of the whole world, to fit a basis on (column `image`)."""
    _, images = _drawn(size, seed, None)
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


def handwriting(*, seed: int = 0) -> DatasetDict:
    """The 1,797 handwritten digits that scikit-learn carries (8 x 8 gray, white on black).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Args:
        seed: of the split.

    Returns:
        Splits `train` (1,077), `validation` (360) and `test` (360), stratified by digit, with the
        columns `image` and `label`.
    """
    digits = load_digits()
    images = [
        PillowImage.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
        for image in digits.images
    ]
    whole = _dataset(images, digits.target.tolist(), list(ATTRIBUTES["digit"]))
    rest = whole.train_test_split(360, stratify_by_column="label", seed=seed)
    fit = rest["train"].train_test_split(360, stratify_by_column="label", seed=seed)
    return DatasetDict(train=fit["train"], validation=fit["test"], test=rest["test"])


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
