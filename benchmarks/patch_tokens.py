"""Whether patch tokens tell more than what heads and MLPs wrote: the bundled CLIP, a ridge each.

    python benchmarks/patch_tokens.py        # writes patch_tokens.json beside itself

After ALF (ICML 2026), which lets a classifier attend to the class token and the mean of the others
after each layer. Here they are further columns beside the embedding or the coordinates, the mean
and the largest value over patches after each layer, each column standardised by its training
images, each kind given the same weight; the strength is chosen by left-out error. Pictures are
those of `bench_small.py`, five draws of so many per class.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench_small import PLACE, pictures
from peft import get_peft_model
from PIL import Image

from residual_peft import ResiDualConfig
from residual_peft.classifiers.backbones import Backbone, load_backbone
from residual_peft.solvers.coordinates import collect_coordinates

TASKS = ("handwriting", "digits-noisy", "clip-art")
SHOTS, DRAWS, BATCH = (4, 16), 5, 64
STRENGTHS = np.logspace(-4, 2, 25)
COLUMNS: dict[str, tuple[str, ...]] = {
    "embedding": ("embedding",),
    "embedding, class tokens": ("embedding", "class"),
    "embedding, class tokens, patches": ("embedding", "class", "mean", "largest"),
    "coordinates": ("embedding", "coordinates"),
    "coordinates, class tokens": ("embedding", "coordinates", "class"),
    "coordinates, patches": ("embedding", "coordinates", "mean", "largest"),
}


def files_of(task: str, split: str) -> tuple[list[Path], np.ndarray]:
    """Files (N,) and labels (N,)."""
    folders = sorted(path for path in (PLACE / task / split).iterdir() if path.is_dir())
    found = [(path, label) for label, at in enumerate(folders) for path in sorted(at.iterdir())]
    return [path for path, _ in found], np.array([label for _, label in found])


@torch.no_grad()
def columns_of(
    clip: Backbone, adapted: torch.nn.Module, files: list[Path]
) -> dict[str, np.ndarray]:
    """Kind -> (N, its columns)."""

    def parts() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(files), BATCH):
            images = [Image.open(path).convert("RGB") for path in files[start : start + BATCH]]
            pixels = clip.image_processor(images, return_tensors="pt")["pixel_values"]
            labels = torch.zeros(len(images), dtype=torch.long)
            seen = collect_coordinates(adapted, [{"pixel_values": pixels, "labels": labels}])
            layers = clip.model.vision_model(pixels, output_hidden_states=True).hidden_states
            yield {
                "embedding": seen.readout,
                "coordinates": seen.coordinates,
                "class": torch.cat([tokens[:, 0] for tokens in layers], 1),
                "mean": torch.cat([tokens[:, 1:].mean(1) for tokens in layers], 1),
                "largest": torch.cat([tokens[:, 1:].amax(1) for tokens in layers], 1),
            }

    found = list(parts())
    return {kind: torch.cat([part[kind] for part in found]).double().numpy() for kind in found[0]}


def accuracy(
    train: list[np.ndarray], labels: np.ndarray, test: list[np.ndarray], told: np.ndarray
) -> float:
    """Of a ridge on kinds of columns, each of the same weight, and a constant."""
    own, others = np.ones((len(labels),) * 2), np.ones((len(told), len(labels)))
    for here, there in zip(train, test, strict=True):
        center, scale = here.mean(0), (here.std(0) + 1e-6) * np.sqrt(here.shape[1])
        scaled = (here - center) / scale
        own, others = own + scaled @ scaled.T, others + (there - center) / scale @ scaled.T
    wanted = np.eye(labels.max() + 1)[labels]
    tried = []
    for strength in STRENGTHS:
        inverse = np.linalg.inv(own + strength * np.eye(len(own)))
        weights = inverse @ wanted
        left_out = weights / np.diag(inverse)[:, None]  # the error of each image by the others
        tried.append((float((left_out**2).mean()), weights))
    best = min(tried, key=lambda one: one[0])[1]
    return float(((others @ best).argmax(1) == told).mean())


def main() -> None:
    """All tasks."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    clip = load_backbone()
    adapted = get_peft_model(load_backbone().model, ResiDualConfig())
    rows = []
    for task in (task for task in TASKS if (PLACE / task).exists()):
        (files, labels), (others, told) = files_of(task, "train"), files_of(task, "test")
        train, test = columns_of(clip, adapted, files), columns_of(clip, adapted, others)
        for shots in SHOTS:
            scores: dict[str, list[float]] = {name: [] for name in COLUMNS}
            for draw in range(DRAWS):
                order = np.random.default_rng(draw).permutation(len(labels))
                places = [order[labels[order] == one][:shots] for one in range(labels.max() + 1)]
                rows_of = np.concatenate(places)
                for name, kinds in COLUMNS.items():
                    known = [train[kind][rows_of] for kind in kinds]
                    new = [test[kind] for kind in kinds]
                    scores[name].append(accuracy(known, labels[rows_of], new, told))
            for name, found in scores.items():
                rows.append({"task": task, "shots": shots, "columns": name, "accuracy": found})
                error = np.std(found, ddof=1) / DRAWS**0.5
                print(f"{task:14} {shots:3} {name:34} {np.mean(found):.3f} ± {error:.3f}")
    Path(__file__).with_suffix(".json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
