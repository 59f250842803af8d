"""`residual-peft bench` on small pictures: the bundled CLIP, `bench_small.toml`.

    python benchmarks/bench_small.py        # writes bench_small.jsonl and .md beside itself

Folders of pictures are made under the system's temporary directory, then the registry is run there,
as `residual-peft bench bench_small.toml --resume` would be; a killed run goes on, and what stands
in bench_small.jsonl is not run again (delete it for that). Clip art is
fetched as `heads_tasks.py` fetches it; where it cannot be had, it is left out and the rest runs.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from heads_tasks import CLIP_ART, clip_art_folder, on_white, shifted
from PIL import Image

from residual_peft.app.benching import run_bench
from residual_peft.demo.tasks import handwriting, world_task
from residual_peft.experiments.bench.registry import read_registry

PLACE = Path(tempfile.gettempdir()) / "residual-peft-bench"
REGISTRY = Path(__file__).with_suffix(".toml")
WORLD_IMAGES = {"train": 700, "test": 500}


def put(name: str, split: str, pictures: Iterable[tuple[str, Image.Image]]) -> None:
    """A split as class folders."""
    for row, (label, picture) in enumerate(pictures):
        folder = PLACE / name / split / label
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{row:05}.png")


def handwritten() -> None:
    """scikit-learn's digits, in the demo's splits."""
    for split, task in handwriting().items():
        names = task.features["label"].names
        put("handwriting", split, ((names[row["label"]], row["image"]) for row in task))


def world(attribute: str, shift: str) -> None:
    """A task of the world, its images changed."""
    for seed, (split, count) in enumerate(WORLD_IMAGES.items()):
        task = world_task(attribute, count, seed=10 + seed)
        names = task.features["label"].names
        rows = enumerate(zip(task["label"], task["image"], strict=True))
        pictures = ((names[label], shifted(image, shift, row)) for row, (label, image) in rows)
        put(f"{attribute}s-{shift}", split, pictures)


def clip_art() -> None:
    """30 subjects."""
    root, listed = clip_art_folder(), json.loads(CLIP_ART.read_text())
    for split, subjects in listed.items():
        for subject, files in subjects.items():
            name = Path(subject).name.replace("_", " ")
            put("clip-art", split, ((name, on_white(root / subject / file)) for file in files))


def pictures() -> None:
    """All folders, once."""
    done = PLACE / "complete"
    if done.exists():
        return
    handwritten()
    world("digit", "noisy")
    try:
        clip_art()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"No clip art: {error}")
    done.touch()


def run(registry: Path, folder: str) -> None:
    """Run what is not among the results beside a registry, and put all results there."""
    os.chdir(PLACE)
    rows, kept = PLACE / folder / "results.jsonl", registry.with_suffix(".jsonl")
    if kept.exists() and not rows.exists():
        rows.parent.mkdir(exist_ok=True)
        shutil.copy(kept, rows)
    run_bench(read_registry(registry), rows.parent, resume=True)
    shutil.copy(rows, kept)
    shutil.copy(rows.with_name("summary.md"), registry.with_suffix(".md"))


def main() -> None:
    """Make the pictures, and run the registry."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    run(REGISTRY, "out")


if __name__ == "__main__":
    main()
