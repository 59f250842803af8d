"""Pictures that have several labels: one bright quarter for each."""

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

NAMES = ("abc", "fgh", "klm", "pqr")


COUNT = 90


def picture(labels: list[str], seed: int) -> Image.Image:
    """Noise, with one bright quarter per label."""
    pixel = np.random.default_rng(seed).integers(0, 120, (16, 16, 3), np.uint8)
    for name in labels:
        row, column = divmod(NAMES.index(name), 2)
        pixel[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 120
    return Image.fromarray(pixel)


def lists(count: int = COUNT, seed: int = 0) -> list[list[str]]:
    drawn = np.random.default_rng(seed).random((count, len(NAMES))) < [0.5, 0.4, 0.3, 0.15]
    return [[name for name, has in zip(NAMES, row, strict=True) if has] for row in drawn]


def images(count: int = COUNT, seed: int = 0) -> Dataset:
    rows = lists(count, seed)
    pictures = [picture(row, seed * 1000 + i) for i, row in enumerate(rows)]
    return Dataset.from_dict({"image": pictures, "tags": rows}).rename_column("tags", "label")


def hot(rows: list[list[str]]) -> Tensor:
    return torch.tensor([[name in row for name in NAMES] for row in rows]).to(torch.uint8)
