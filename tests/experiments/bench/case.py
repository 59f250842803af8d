"""A registry that takes seconds: a random CLIP on disk, folders of images of some brightnesses."""

from pathlib import Path

import numpy as np
from PIL import Image

from residual_peft.data import ImageData
from residual_peft.experiments.bench.encoding import Pair, Tower
from residual_peft.experiments.bench.entries import Protocol
from residual_peft.experiments.bench.given import Given
from residual_peft.experiments.bench.images import draw, load_images
from residual_peft.experiments.bench.registry import Registry, read_registry
from tests.training_case import save_clip

METHODS = ("zero-shot", "gains", "ridge", "knn", "linear-map")
TEXT = """
methods = {methods}
title = "A <small> bench"

[models.tiny]
source = "tiny"

[data.grey]
source = "grey"
templates = ["a {{}}.", "the {{}}."]

[data.other]
source = "other"
test = 0.3

[data.gone]
source = "not/there"

[protocols.2-shot]
kind = "shots"
shots = 2
seeds = [0, 1]
without = ["linear-map"]

[protocols.all]
kind = "full"
without = ["knn", "linear-map"]

[protocols.halves]
kind = "base-to-novel"
shots = 3
"""


def pictures(root: Path, names: tuple[str, ...], count: int, seed: int) -> None:
    """A folder of class folders."""
    generator = np.random.default_rng(seed)
    for row in range(count):
        label = row % len(names)
        noise = generator.integers(-40, 40, (16, 16, 3))
        level = 40 + 170 * label / (len(names) - 1)
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8))
        image.save(root / names[label] / f"{row:03}.png")


def small_registry(folder: Path, methods: tuple[str, ...] = METHODS) -> Registry:
    """Written beside its model and its data, and read."""
    save_clip(folder / "tiny")
    pictures(folder / "grey", ("black", "dark", "light", "white"), 64, 0)
    pictures(folder / "other", ("dim", "grey", "pale"), 24, 1)
    path = folder / "registry.toml"
    path.write_text(TEXT.format(methods=list(methods)))
    return read_registry(path)


def tiny_pair(registry: Registry, place: Path, basis: ImageData | None = None) -> Pair:
    """The model and the grey images of a registry."""
    tower = Tower.of(registry.models["tiny"], registry, place, basis)
    entry = registry.data["grey"]
    return Pair(tower, load_images(entry), entry, registry, place / "grey")


def few(pair: Pair, shots: int = 5, seed: int = 0, kind: str = "shots") -> Given:
    """A draw of its training images."""
    labels, classes = pair.train.labels, len(pair.images.class_names)
    protocol = Protocol(kind, shots)
    return Given.of(pair, protocol, draw(protocol, labels, classes, seed))
