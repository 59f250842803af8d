"""Learning rates of every method of the demo, by validation accuracy.

    python benchmarks/rates.py        # writes rates.json beside itself; about fifteen minutes

Handwriting for all methods; the default and the linear map also on the world's nine attributes,
where the model is nearly perfect as it is and a fit to 300 images can only keep that. Test images
play no part.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft import get_peft_model
from tqdm.auto import tqdm
from units import SEEDS, spread, tasks

from residual_peft import fit_bases
from residual_peft.classifiers.backbones import load_backbone, load_image_tower
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.metrics import accuracy
from residual_peft.experiments import METHODS, LoraSettings, Method, Task
from residual_peft.experiments.lora import fit_lora
from residual_peft.hub.files import write_json
from residual_peft.solvers import fit_gains, fit_linear
from residual_peft.solvers.coordinates import collect_coordinates, collect_readouts
from residual_peft.towers.running import run_tower
from residual_peft.tuner import restart_gains

GAIN_RATES = (0.01, 0.03, 0.1, 0.3, 0.8)
RATES = {
    "coarse": GAIN_RATES,
    "residual_star": GAIN_RATES,
    "residual": GAIN_RATES,
    "default": GAIN_RATES,
    "rd_y": (1e-3, 1e-2, 0.1, 0.3, 0.8),
    "linear": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "lora": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
}
LORA_SEEDS = (0, 1)
WORLD_METHODS = ("default", "linear")


def gains_rates(task: Task, method: Method, rates: tuple[float, ...]) -> dict[str, Any]:
    """Bases and coordinates once; accuracy at each rate."""
    assert method.config is not None
    model = get_peft_model(task.backbone.model, method.config(0))
    try:
        fit_bases(model, task.basis)
        classifier = task.classifier(model)
        train = collect_coordinates(model, task.train)
        validation = collect_coordinates(model, task.validation)
        found = {}
        for rate in rates:
            scores = []
            for seed in SEEDS:
                restart_gains(model, seed)
                fit = fit_gains(classifier, train, validation, learning_rate=rate, seed=seed)
                scores.append(fit.accuracy)
            found[str(rate)] = spread(scores)
        return found
    finally:
        model.unload()


def linear_rate(task: Task, rate: float) -> dict[str, Any]:
    """The linear map at one learning rate."""
    classifier: ZeroShotClassifier = task.classifier()
    train = collect_readouts(task.backbone.model, task.train)
    validation = collect_readouts(task.backbone.model, task.validation)
    fits = [fit_linear(classifier, train, validation, learning_rate=rate, seed=s) for s in SEEDS]
    return spread([fit.accuracy for fit in fits])


@torch.no_grad()
def validation_accuracy(classifier: ZeroShotClassifier, task: Task) -> float:
    """Of the model as it stands, LoRA and all."""
    logits = [
        classifier.logits(run_tower(classifier.model, batch["pixel_values"]))
        for batch in task.validation
    ]
    labels = torch.cat([batch["labels"] for batch in task.validation])
    return accuracy(torch.cat(logits), labels)


def lora_rates(task: Task, rates: tuple[float, ...]) -> dict[str, Any]:
    """LoRA, trained by the HF Trainer, at each rate."""
    found = {}
    for rate in rates:
        scores = []
        for seed in LORA_SEEDS:
            classifier = task.classifier(load_image_tower(task.backbone.name))
            settings = LoraSettings(learning_rate=rate)
            fit_lora(classifier, task.train, task.validation, settings, seed)
            scores.append(validation_accuracy(classifier, task))
        found[str(rate)] = spread(scores)
    return found


def rates_of(task: Task, name: str) -> dict[str, Any]:
    """One method on one task: rate -> accuracy."""
    method, rates = METHODS[name], RATES[name]
    if method.kind == "gains":
        return gains_rates(task, method, rates)
    if method.kind == "linear":
        return {str(rate): linear_rate(task, rate) for rate in rates}
    return lora_rates(task, rates)


def main() -> None:
    """Measure all rates."""
    torch.manual_seed(0)
    worlds: dict[str, list[dict[str, Any]]] = {name: [] for name in WORLD_METHODS}
    results: dict[str, Any] = {"seeds": list(SEEDS), "lora_seeds": list(LORA_SEEDS)}
    for task_name, task in tqdm(list(tasks(load_backbone())), "Tasks", unit="task"):
        if task_name == "handwriting":
            results["handwriting"] = {}
            for name in RATES:
                results["handwriting"][name] = rates_of(task, name)
                tqdm.write(f"{name}: {results['handwriting'][name]}")
        else:
            for name in WORLD_METHODS:
                worlds[name].append(rates_of(task, name))
    results["world_mean"] = {
        name: {
            rate: round(mean(found[rate]["accuracy"] for found in worlds[name]), 4)
            for rate in map(str, RATES[name])
        }
        for name in WORLD_METHODS
    }
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
