"""Tasks for the bundled model: its own world's attributes, and real handwriting."""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PillowImage
from sklearn.datasets import load_digits

from ..errors import ResiDualError
from .drawing import draw
from .world import ATTRIBUTES, TEMPLATES, sample_scenes

HANDWRITING_TEMPLATES = TEMPLATES["digit"]
"""Prompts for handwriting: the ones that the world uses for printed digits."""


def _dataset(images: list[PillowImage.Image], labels: list[int], names: list[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


# pretraining draws with seeds from 0 up, its own measurements with 10^9 and up
_HELD_OUT = 2 * 10**9


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(_HELD_OUT + seed)


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
    generator = _generator(seed)
    scene = sample_scenes(size, generator, only=attribute)
    arrays = draw(scene, generator).permute(0, 2, 3, 1).numpy()
    images = [PillowImage.fromarray(array) for array in arrays]
    return _dataset(images, scene.values[attribute].tolist(), list(ATTRIBUTES[attribute]))


def world_images(size: int = 2000, *, seed: int = 0) -> Dataset:
    """Unlabelled images of the whole world, to fit a basis on (column `image`)."""
    generator = _generator(seed)
    arrays = draw(sample_scenes(size, generator), generator).permute(0, 2, 3, 1).numpy()
    images = [PillowImage.fromarray(array) for array in arrays]
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
