"""Which units and components to adapt by default: accuracy against size.

    python benchmarks/units.py        # writes units.json beside itself; about ten minutes

The bundled model, on handwriting and on the nine attributes of its own world. Accuracy is that of
the validation images (test images are for reports, not for choices). Bases from the world's images.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import get_peft_model
from tqdm.auto import tqdm

from residual_peft import ResiDualConfig, fit_bases
from residual_peft.app.demonstration import handwriting_task
from residual_peft.classifiers.backbones import Backbone, load_backbone
from residual_peft.data import batches
from residual_peft.data.metrics import accuracy
from residual_peft.demo.tasks import world_images, world_task
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES
from residual_peft.experiments import Task
from residual_peft.hub.files import write_json
from residual_peft.solvers import fit_gains
from residual_peft.solvers.coordinates import collect_coordinates, collect_readouts
from residual_peft.tuner import gains_of, restart_gains

SEEDS = (0, 1, 2)
WORLD_TRAIN, WORLD_VALIDATION, BASIS = 300, 1000, 2000
CHOICES: dict[str, dict[str, Any]] = {
    "heads": {"units": ("head",)},
    "MLPs": {"units": ("mlp",)},
    "heads and MLPs": {"units": ("head", "mlp")},
    "embed, heads and MLPs": {"units": ("embed", "head", "mlp")},
    "heads, 0.99 of the variance": {"units": ("head",), "components": 0.99},
    "heads and MLPs, 0.99 of the variance": {"units": ("head", "mlp"), "components": 0.99},
    "heads, 0.9 of the variance": {"units": ("head",), "components": 0.9},
    "heads and MLPs, 0.9 of the variance": {"units": ("head", "mlp"), "components": 0.9},
}


def tasks(backbone: Backbone) -> Iterator[tuple[str, Task]]:
    """Handwriting, then the world's attributes."""
    yield "handwriting", handwriting_task(backbone, basis_images=BASIS)
    processor = backbone.image_processor
    basis = list(batches(world_images(BASIS), processor))
    for attribute in ATTRIBUTES:
        train = world_task(attribute, WORLD_TRAIN, seed=1)
        validation = world_task(attribute, WORLD_VALIDATION, seed=2)
        seen = list(batches(validation, processor))
        names = tuple(train.features["label"].names)
        yield (
            f"world: {attribute}",
            Task(
                backbone=backbone,
                class_names=names,
                templates=TEMPLATES[attribute],
                train=list(batches(train, processor)),
                validation=seen,
                test=[],  # nothing here may look at one
                basis=basis,
            ),
        )


def saved_bytes(model: Any) -> int:
    """Size of the adapter's weights file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def measure_gains(task: Task, config: ResiDualConfig, **options: Any) -> dict[str, Any]:
    """Best validation accuracy over the seeds, gains and bytes, for one choice."""
    model = get_peft_model(task.backbone.model, config)
    try:
        fit_bases(model, task.basis)
        classifier = task.classifier(model)
        train = collect_coordinates(model, task.train)
        validation = collect_coordinates(model, task.validation)
        scores = []
        for seed in SEEDS:
            restart_gains(model, seed)
            fit = fit_gains(classifier, train, validation, seed=seed, **options)
            scores.append(fit.accuracy)
        return {
            "gains": gains_of(model).numel(),
            "adapter_bytes": saved_bytes(model),
            **spread(scores),
        }
    finally:
        model.unload()


def zero_shot(task: Task) -> float:
    """Validation accuracy of the model as it is."""
    readouts = collect_readouts(task.backbone.model, task.validation)
    return accuracy(task.classifier().logits(readouts.readout), readouts.labels)


def spread(scores: list[float]) -> dict[str, float]:
    """Mean and standard deviation over the seeds."""
    return {"accuracy": round(mean(scores), 4), "spread": round(stdev(scores), 4)}


def main() -> None:
    """Measure all choices on all tasks."""
    torch.manual_seed(0)
    backbone = load_backbone()
    results: dict[str, Any] = {"seeds": list(SEEDS), "tasks": {}}
    for name, task in tqdm(list(tasks(backbone)), "Tasks", unit="task"):
        found: dict[str, Any] = {"zero_shot": round(zero_shot(task), 4)}
        for label, options in CHOICES.items():
            found[label] = measure_gains(task, ResiDualConfig(**options))
        results["tasks"][name] = found
        tqdm.write(f"{name}: {found}")
    worlds = [found for name, found in results["tasks"].items() if name.startswith("world")]
    results["world_mean"] = {
        label: round(mean(found[label]["accuracy"] for found in worlds), 4) for label in CHOICES
    } | {"zero_shot": round(mean(found["zero_shot"] for found in worlds), 4)}
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
