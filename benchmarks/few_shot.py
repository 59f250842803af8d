"""Gains against a linear map as the labelled images grow: handwriting, the bundled model.

    python benchmarks/few_shot.py        # writes few_shot.json beside itself; about five minutes

Accuracy on the test images, mean and standard deviation over five draws of the training images.
Each method's rate is the demo's (`rates.json`). The epoch is chosen on as many validation images
per class as there are training images, so that the whole costs what it says. `probe` is
scikit-learn's logistic regression on the coordinates, without the class embeddings: what the units
know, had each component a weight of its own per class.
"""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import get_peft_model
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm.auto import tqdm

from residual_peft import ResiDualConfig, fit_bases
from residual_peft.app.demonstration import handwriting_task
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data.metrics import accuracy
from residual_peft.experiments import METHODS
from residual_peft.hub.files import write_json
from residual_peft.solvers import fit_gains, fit_linear, linear_readout
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.tuner import restart_gains

SHOTS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
DRAWS = 5


def some(rows: Coordinates, shots: int | None, generator: torch.Generator) -> Coordinates:
    """So many rows of each class, drawn; all when None."""
    if shots is None:
        return rows
    chosen: list[Tensor] = []
    for label in rows.labels.unique():
        index = (rows.labels == label).nonzero().flatten()
        chosen.append(index[torch.randperm(len(index), generator=generator)[:shots]])
    return rows.rows(torch.cat(chosen))


def scores_of(
    classifier: ZeroShotClassifier, train: Coordinates, validation: Coordinates, test: Coordinates
) -> dict[str, float]:
    """Test accuracy of each method for one draw."""
    found = {}
    for name in ("default", "linear"):
        rate = METHODS[name].learning_rate
        if name == "default":
            restart_gains(classifier.model)
            fit = fit_gains(classifier, train, validation, learning_rate=rate)
            readout = test.adapted(fit.gains)
        else:
            fit = fit_linear(classifier, train, validation, learning_rate=rate)
            readout = linear_readout(fit, test.readout)
        with torch.no_grad():
            found[name] = accuracy(classifier.logits(readout), test.labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.coordinates.numpy(), train.labels.numpy())
    found["probe"] = float(probe.score(test.coordinates.numpy(), test.labels.numpy()))
    return found


def main() -> None:
    """Measure all sizes."""
    task = handwriting_task(load_backbone())
    model = get_peft_model(task.backbone.model, ResiDualConfig())
    fit_bases(model, task.basis)
    classifier = task.classifier(model)
    parts = [collect_coordinates(model, part) for part in (task.train, task.validation, task.test)]
    train, validation, test = parts
    results: dict[str, Any] = {
        "draws": DRAWS,
        "zero_shot": round(accuracy(classifier.logits(test.readout), test.labels), 4),
        "images_per_class": {},
    }
    for shots in tqdm(SHOTS, "Sizes"):
        each = []
        for draw in range(DRAWS if shots is not None else 1):
            generator = torch.Generator().manual_seed(draw)
            few = [some(part, shots, generator) for part in (train, validation)]
            each.append(scores_of(classifier, *few, test))
        found = {}
        for name in each[0]:
            values = [scores[name] for scores in each]
            found[name] = {"accuracy": round(mean(values), 4)}
            if len(values) > 1:
                found[name]["spread"] = round(stdev(values), 4)
        results["images_per_class"]["all" if shots is None else str(shots)] = found
        tqdm.write(f"{shots}: {found}")
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
