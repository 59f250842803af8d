"""`residual-peft bench` of three small CLIPs on what they have not seen: `bench_clips.toml`.

    python benchmarks/bench_clips.py        # writes bench_clips.jsonl and .md beside itself

Two more CLIPs were pretrained on the bundled one's world, in other shapes; `clips/` holds them, in
half precision, beside what they were told while they were trained:

    python benchmarks/pretraining.py --layers 4 --heads 4 --patch 10 --seed 1 \\
        --steps 2400 --decay 700 --every 200 --export benchmarks/clips/short
    python benchmarks/pretraining.py --layers 8 --heads 4 --width 96 --seed 2 \\
        --steps 1800 --decay 600 --every 200 --export benchmarks/clips/deep

As in `bench_small.py`, a killed run goes on, and what stands in bench_clips.jsonl stays.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from bench_small import PLACE, handwritten, put, run, world
from PIL import Image, ImageDraw, ImageFont

from residual_peft.demo.world import ATTRIBUTES

REGISTRY = Path(__file__).with_suffix(".toml")
CLIPS = Path(__file__).with_name("clips")
IMAGES = {"train": 720, "test": 480}
FONTS = ("cmti10", "cmmi10", None)
"""Of matplotlib, which the world does not draw with; None for Pillow's own."""
SIDE = 40
TEXTURES = ("wavy", "bricked", "ringed", "speckled", "woven")
SHIFTED = (("color", "inverted"), ("shape", "noisy"), ("position", "noisy"), ("count", "turned"))


def font(row: int, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """One of `FONTS`."""
    name = FONTS[row % len(FONTS)]
    if name is None:
        return ImageFont.load_default(size)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def two_colors(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of an object and of what it lies on, which is black, gray or white as in the world."""
    paper = np.full(3, generator.choice([15, 128, 240]))
    while True:
        ink = generator.integers(0, 256, 3)
        if np.abs(ink - paper).sum() > 200:
            return ink, paper


def characters(attribute: str, seed: int, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Letters or digits, each as often, in fonts that are new."""
    generator, names = np.random.default_rng(seed), ATTRIBUTES[attribute]
    for row in range(count):
        name = names[row % len(names)]
        ink, paper = (tuple(map(int, color)) for color in two_colors(generator))
        image = Image.new("RGB", (SIDE, SIDE), paper)
        size = int(generator.integers(18, 34))
        place = tuple(SIDE / 2 + generator.uniform(-5, 5, 2))
        face = font(row // len(names), size)
        ImageDraw.Draw(image).text(place, name, font=face, fill=ink, anchor="mm")
        yield name, image


def pattern(name: str, generator: np.random.Generator) -> np.ndarray:
    """Where a texture is light, bool (SIDE, SIDE)."""
    y, x = np.mgrid[:SIDE, :SIDE] + generator.uniform(0, 20, (2, 1, 1))
    step = generator.uniform(5, 9)
    if name == "wavy":
        return (y + 3 * np.sin(2 * np.pi * x / (2 * step))) % step < step / 2
    if name == "bricked":
        shift = (y // step % 2) * step
        return (y % step < 1.5) | ((x + shift) % (2 * step) < 1.5)
    if name == "ringed":
        return np.hypot(x - x.mean(), y - y.mean()) % step < step / 2
    if name == "speckled":
        return generator.random((SIDE, SIDE)) < 0.35
    over = (x // (step / 2) + y // (step / 2)) % 2 == 0
    return np.where(over, x % (step / 2) < 1.5, y % (step / 2) < 1.5)


def textured(seed: int, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Discs and squares of textures that are new."""
    generator = np.random.default_rng(seed)
    for row in range(count):
        name = TEXTURES[row % len(TEXTURES)]
        color, paper = two_colors(generator)
        light = pattern(name, generator)
        y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 - generator.uniform(-4, 4, (2, 1, 1))
        radius = generator.uniform(10, 17)
        inside = np.hypot(x, y) < radius if row // 5 % 2 else np.maximum(abs(x), abs(y)) < radius
        own = np.where(light[..., None], color, color // 3)
        pixels = np.where(inside[..., None], own, paper) + generator.normal(0, 6, (SIDE, SIDE, 3))
        yield name, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pictures() -> None:
    """All folders, once."""
    done = PLACE / "clips-complete"
    if done.exists():
        return
    handwritten()
    for seed, (split, count) in enumerate(IMAGES.items()):
        put("letters-new-fonts", split, characters("letter", 10 + seed, count))
        put("digits-new-fonts", split, characters("digit", 20 + seed, count))
        put("new-textures", split, textured(30 + seed, count))
    for attribute, shift in SHIFTED:
        world(attribute, shift)
    done.touch()


def main() -> None:
    """Make the pictures, and run the registry."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    shutil.copytree(CLIPS, PLACE / "clips", dirs_exist_ok=True)
    run(REGISTRY, "out-clips")


if __name__ == "__main__":
    main()
