"""A planted colour, and heads taken away by word and by gain: does the worst group fare better?

    python benchmarks/planted.py            # writes planted.json; pictures of `bench_shift.py`

Of the task `planted` 95 in 100 training images have their class's colour, and half of the test
images. Heads are ranked without a label of the task, and then stay at their mean over its training
images, in training and test images alike. By word: how far a head moves towards the texts of the
colours, less how far towards those of the classes. By gain: how much more a head moves at gains
that were fitted to tell colours, on other images of the world. At random: as many heads of the
same layers as by word, ten draws.
"""

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_shift import REGISTRY, pictures
from bench_small import PLACE
from peft import get_peft_model
from torch import Tensor

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches
from residual_peft.demo.tasks import world_task
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES
from residual_peft.experiments.bench.given import worst
from residual_peft.experiments.bench.images import load_images, subgroups_of
from residual_peft.experiments.bench.registry import read_registry
from residual_peft.hub.files import write_json
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.solvers.methods import METHODS, Rows
from residual_peft.tuner import ResiDualConfig

COUNTS = (0, 1, 2, 4, 8, 16)
DRAWS = 10
FITTED = ("zero-shot", "logistic-embedding", "ridge-embedding", "ridge", "gains")
OTHERS = 600  # images of the world on which gains are fitted to tell colours


class Task:
    """The planted task: coordinates of its images, groups of its test images, its classifier."""

    def __init__(self) -> None:
        entry = read_registry(REGISTRY).data["planted"]
        images = load_images(entry)
        self.backbone = load_backbone()
        self.model = get_peft_model(self.backbone.model, ResiDualConfig(units=("head", "mlp")))
        self.classifier = self.texts(images.class_names, entry.templates)
        self.train, self.test = (self.read(images[split]) for split in ("train", "test"))
        names = [images.class_names[label] for label in images.test["label"]]
        values = subgroups_of(entry, images)
        self.groups = [f"{name}, {value}" for name, value in zip(names, values, strict=True)]
        units, counts = self.train.state.settings.units, self.train.state.counts
        self.owner = np.repeat(np.arange(len(units)), counts)  # unit of each coordinate
        self.heads = [place for place, unit in enumerate(units) if unit.kind == "head"]
        self.layers = {place: units[place].layer for place in self.heads}

    def texts(self, names: Any, templates: Any) -> ZeroShotClassifier:
        """Classes as texts."""
        return ZeroShotClassifier.from_text(self.model, self.backbone.tokenizer, names, templates)

    def read(self, images: Any) -> Coordinates:
        """Of some images."""
        return collect_coordinates(self.model, batches(images, self.backbone.image_processor))

    def without(self, data: Coordinates, heads: list[int]) -> Coordinates:
        """The images with some heads at their mean over the training images."""
        columns = torch.from_numpy(np.isin(self.owner, heads).nonzero()[0])
        own = data.coordinates[:, columns]
        mean = self.train.coordinates[:, columns].mean(0)
        coordinates = data.coordinates.clone()
        coordinates[:, columns] = mean
        readout = data.readout - (own - mean) @ data.state.directions[columns]
        return replace(data, coordinates=coordinates, readout=readout)

    def scores(self, heads: list[int]) -> dict[str, dict[str, float]]:
        """Method -> accuracy, and that of the worst group."""
        train, test = (self.without(data, heads) for data in (self.train, self.test))
        rows, found = Rows.of(self.classifier, train), {}
        for name in FITTED:
            logits = METHODS[name].run(rows).logits(self.classifier, test)
            right = logits.argmax(1) == test.labels
            found[name] = {"accuracy": float(right.double().mean())}
            found[name]["worst group"] = worst(right, self.groups)[1]
        return found


def by_word(task: Task) -> list[int]:
    """Heads, the most about colours first."""
    colors = task.texts(ATTRIBUTES["color"], TEMPLATES["color"]).class_embeddings
    energy = energies(task, colors) - energies(task, task.classifier.class_embeddings)
    return sorted(task.heads, key=lambda head: -energy[head])


def energies(task: Task, texts: Tensor) -> np.ndarray:
    """How much the training images move each unit within the differences of some texts."""
    apart = texts - texts.mean(0)
    _, sizes, frame = torch.linalg.svd(apart, full_matrices=False)
    frame = frame[sizes > 1e-5 * sizes[0]]
    moved = task.train.coordinates - task.train.coordinates.mean(0)
    found = np.zeros(task.owner.max() + 1)
    for head in task.heads:
        columns = torch.from_numpy((task.owner == head).nonzero()[0])
        towards = moved[:, columns] @ task.train.state.directions[columns] @ frame.mT
        found[head] = float(towards.square().sum(1).mean())
    return found


def by_gain(task: Task) -> list[int]:
    """Heads, those first that gains for colours make move most, on other images."""
    others = task.read(world_task("color", OTHERS, seed=77))
    classifier = task.texts(ATTRIBUTES["color"], TEMPLATES["color"])
    gains = METHODS["gains"].run(Rows.of(classifier, others)).gains
    assert gains is not None
    change = (others.coordinates.var(0) * (gains.square() - 1)).numpy()
    found = np.bincount(task.owner, weights=change)
    return sorted(task.heads, key=lambda head: -found[head])


def like(task: Task, heads: list[int], random: np.random.Generator) -> list[int]:
    """As many heads of the same layers, at random."""
    wanted: dict[int | None, int] = defaultdict(int)
    for head in heads:
        wanted[task.layers[head]] += 1
    found: list[int] = []
    for layer, count in wanted.items():
        own = [head for head in task.heads if task.layers[head] == layer]
        found += random.choice(own, count, replace=False).tolist()
    return found


def main() -> None:
    """All rankings at all counts."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    os.chdir(PLACE)
    task, random = Task(), np.random.default_rng(0)
    ranked = {"word": by_word(task), "gain": by_gain(task)}
    units = task.train.state.settings.units
    rows = []
    for count in COUNTS:
        for name, order in ranked.items():
            rows.append({"by": name, "heads": count, **task.scores(order[:count])})
        drawn = [task.scores(like(task, ranked["word"][:count], random)) for _ in range(DRAWS)]
        means = {
            method: {
                what: float(np.mean([draw[method][what] for draw in drawn]))
                for what in ("accuracy", "worst group")
            }
            for method in FITTED
        }
        rows.append({"by": "random", "heads": count, **means})
        print(count, [(row["by"], row["zero-shot"], row["ridge"]) for row in rows[-3:]], flush=True)
    first = {
        name: [f"{units[head].layer}.{units[head].head}" for head in order[: COUNTS[-1]]]
        for name, order in ranked.items()
    }
    written = {"of": len(task.heads), "images": len(task.train), "first": first, "rows": rows}
    write_json(Path(__file__).with_suffix(".json"), written)


if __name__ == "__main__":
    main()
