"""Folders of photos that can be learned by heart, and a small model for them."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "owl")


def photos(
    root: Path, names: tuple[str, ...] = NAMES, count: int = 20, seed: int = 0, first: int = 0
) -> Path:
    """A folder of class folders: noise that says nothing of the class, but for a few pixels."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            pixels = generator.integers(0, 256, (20, 20, 3), np.uint8)
            pixels[:6, :6] = 40 + 80 * number
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")
    return root


def content(root: Path) -> dict[str, bytes]:
    """All files under a directory, by their place in it."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
