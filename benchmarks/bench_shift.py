"""`residual-peft bench` where test images are not like training images: `bench_shift.toml`.

    python benchmarks/bench_shift.py        # writes bench_shift.jsonl and .md beside itself

Digits of the bundled model's world are asked for as noise, blur and turning leave them, and as
handwriting; all test images are corrupted as ImageNet-C's; and in one task a colour goes with the
class in 95 of 100 training images and in half of the test images, so that its worst group tells
who has learned the colour. As in `bench_small.py`, a killed run goes on.
"""

from pathlib import Path

import torch
from bench_small import PLACE, handwritten, put, run
from heads_tasks import shifted
from PIL import Image

from residual_peft.demo.drawing import draw
from residual_peft.demo.tasks import world_task
from residual_peft.demo.world import ATTRIBUTES, sample_scenes

REGISTRY = Path(__file__).with_suffix(".toml")
IMAGES = {"train": 700, "test": 500}
TEXTURES, COLORS = ("striped", "checkered"), ("red", "blue")
TOGETHER, APART, TESTED = 190, 10, 100
"""Training images of a class with its colour, with the other one; test images of each."""
SEED = 3 * 10**9  # apart from those that anything else draws with


def digits(shift: str | None) -> None:
    """The world's digits, as they are or changed; other images for each kind."""
    kinds = (None, "noisy", "blurred", "turned")
    for split, count in IMAGES.items() if shift is None else (("test", IMAGES["test"]),):
        task = world_task("digit", count, seed=20 + 2 * kinds.index(shift) + (split == "test"))
        names = task.features["label"].names
        images = task["image"]
        if shift is not None:
            images = [shifted(image, shift, row) for row, image in enumerate(images)]
        labels = (names[label] for label in task["label"])
        put(
            "digits" if shift is None else f"digits {shift}",
            split,
            zip(labels, images, strict=True),
        )


def planted(split: str) -> None:
    """Noisy textures, each mostly in its own colour where they are trained on."""
    generator = torch.Generator().manual_seed(SEED + (split == "test"))
    scenes = sample_scenes(60_000, generator, only="texture")
    lines, folder = ["file_name,label,color"], PLACE / "planted" / split
    folder.mkdir(parents=True, exist_ok=True)
    for kind, texture in enumerate(TEXTURES):
        for other, color in enumerate(COLORS):
            count = TESTED if split == "test" else TOGETHER if kind == other else APART
            fits = scenes.values["texture"] == ATTRIBUTES["texture"].index(texture)
            fits &= scenes.values["color"] == ATTRIBUTES["color"].index(color)
            own = scenes[fits.nonzero().flatten()[:count]]
            for row, pixels in enumerate(draw(own, generator).permute(0, 2, 3, 1).numpy()):
                name = f"{texture}-{color}-{row:03}.png"
                seed = 4 * (1000 * (2 * kind + other) + row) + (split == "test")
                shifted(Image.fromarray(pixels), "noisy", seed).save(folder / name)
                lines.append(f"{name},{texture},{color}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def pictures() -> None:
    """All folders, once."""
    done = PLACE / "shifted"
    if done.exists():
        return
    handwritten()
    for shift in (None, "noisy", "blurred", "turned"):
        digits(shift)
    for split in IMAGES:
        planted(split)
    done.touch()


def main() -> None:
    """Make the pictures, and run the registry."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    run(REGISTRY, "out-shift")


if __name__ == "__main__":
    main()
