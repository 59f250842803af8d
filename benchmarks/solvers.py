"""Solvers and the weighting of the ridge, by accuracy on held-out images.

    python benchmarks/solvers.py        # writes solvers.json beside itself; about ten minutes

Handwriting and the bundled model, the default units. For each number of training images per class
the mean over three draws of the test accuracy and, what choices are made by, of the accuracy on the
validation images, of which as many per class are used (at most all). `adamw` is the Trainer's way
from coordinates; `normalized` and `linear` are L-BFGS with the strength of the ridge chosen on the
validation images, by the exponent of the ridge's weights.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft import get_peft_model
from tqdm.auto import tqdm

from residual_peft import fit_bases
from residual_peft.app.demonstration import handwriting_task
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.metrics import accuracy
from residual_peft.experiments import METHODS
from residual_peft.hub.files import write_json
from residual_peft.solvers import Fit, few_shot, fit_gains, solve_gains, strength_path
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.solvers.objectives import Objective

SHOTS: tuple[int | None, ...] = (1, 2, 4, 8, 16, None)
WEIGHTINGS = (0.0, 0.5, 1.0)


def draw(rows: Coordinates, shots: int | None, seed: int) -> Coordinates:
    """So many rows of each class; all when None."""
    return rows if shots is None else few_shot(rows, shots, seed)


def fits(classifier: ZeroShotClassifier, train: Coordinates, held: Coordinates) -> dict[str, Any]:
    """Each solver's fit, and the strength that it chose."""
    method = METHODS["default"]
    ones = torch.ones(train.state.gains.number)
    adamw = fit_gains(classifier, train, held, start=ones, learning_rate=method.learning_rate)
    found: dict[str, Any] = {"adamw": (adamw, None)}
    for normalized in (True, False):
        for weighting in WEIGHTINGS:
            objective = Objective(normalized=normalized, weighting=weighting)
            strength = strength_path(classifier, train, held, objective=objective).best
            this = Objective(normalized=normalized, weighting=weighting, strength=strength)
            fit = solve_gains(
                classifier, train, objective=this, tolerance=1e-4, dtype=torch.float32
            )
            found[f"{'normalized' if normalized else 'linear'} {weighting}"] = (fit, strength)
    return found


def main() -> None:
    """Measure all."""
    torch.manual_seed(0)
    task = handwriting_task(load_backbone())
    method = METHODS["default"]
    assert method.config is not None
    model = get_peft_model(task.backbone.model, method.config(0))
    fit_bases(model, task.basis)
    classifier = task.classifier(model)
    train, validation, test = (
        collect_coordinates(model, split) for split in (task.train, task.validation, task.test)
    )
    smallest = int(torch.bincount(validation.labels).min())

    def score(fit: Fit, rows: Coordinates) -> float:
        with torch.no_grad():
            return accuracy(classifier.logits(rows.adapted(fit.gains)), rows.labels)

    result: dict[str, Any] = {"images": len(train), "gains": train.state.gains.number, "rows": []}
    for shots in tqdm(SHOTS, "Shots"):
        kept: dict[str, list[tuple[float, float, float]]] = {}
        chosen: dict[str, list[float | None]] = {}
        for seed in range(1 if shots is None else 3):
            few = None if shots is None else min(shots, smallest)
            held = draw(validation, few, seed)
            for name, (fit, strength) in fits(classifier, draw(train, shots, seed), held).items():
                values = (score(fit, test), score(fit, validation), fit.seconds)
                kept.setdefault(name, []).append(values)
                chosen.setdefault(name, []).append(strength)
        for name, values in kept.items():
            result["rows"].append(
                {
                    "shots": shots,
                    "solver": name,
                    "test_accuracy": round(mean(v[0] for v in values), 4),
                    "validation_accuracy": round(mean(v[1] for v in values), 4),
                    "fit_seconds": round(mean(v[2] for v in values), 3),
                    "strengths": chosen[name],
                }
            )
            tqdm.write(f"{shots} {name} {result['rows'][-1]['test_accuracy']}")
        write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
