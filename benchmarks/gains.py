"""What gains stand on, and how far they may run: handwriting, a few images of each class.

    python benchmarks/gains.py       # some minutes; writes gains.json beside itself

- `classes`: class embeddings from texts, or blended with the means of the images by the share that
  tells left-out images apart best (`ZeroShotClassifier.with_images`); with names that fit and with
  names that say nothing.
- `bound`: the least variance, relative to the mean, that the ridge weighs a gain by
  (`objectives.LEAST_VARIANCE`), and the largest gain that came of it.

scikit-learn's digits through the bundled CLIP, bases fitted on the training images, a fifth of the
images to test on; strengths and shares are chosen on training images alone, three draws.
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as Pillow
from sklearn.datasets import load_digits
from torch import Tensor

from residual_peft import (
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    collect_with_basis,
    load_data,
)
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.hub.files import write_json
from residual_peft.solvers import few_shot, objectives
from residual_peft.solvers.methods import METHODS, Rows
from residual_peft.solvers.methods import gains as gains_method

OUT = Path(__file__).with_suffix(".json")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAY_NOTHING = (
    "ready thing", "loud thing", "blue thing", "calm thing", "fast thing",
    "gray thing", "iron thing", "jolly thing", "kind thing", "long thing",
)  # fmt: skip
SHOTS = (4, 16, 100)
DRAWS = 3
BOUNDS = (1e-6, 1e-4, 1e-3, 1e-2)


def digits() -> Dataset:
    """scikit-learn's digits, dark on light, 64 pixels wide."""
    found = load_digits()
    images = [
        Pillow.fromarray((255 - image / 16 * 255).astype(np.uint8)).resize((64, 64), 3)
        for image in found.images
    ]
    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    labels = [int(label) for label in found.target]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is their label's."""
    return float((logits.argmax(1) == labels).double().mean())


def fits(classifier: ZeroShotClassifier, train: Any, test: Any, shots: int) -> dict[str, Any]:
    """Gains of some draws: test accuracy and the largest gain."""
    outcomes = [
        METHODS["gains"].run(Rows.of(classifier, few_shot(train, shots, draw)))
        for draw in range(DRAWS)
    ]
    right = mean(accuracy(one.logits(classifier, test), test.labels) for one in outcomes)
    largest = max(float(one.gains.abs().max()) for one in outcomes)
    return {"accuracy": round(right, 4), "largest_gain": round(largest, 1)}


def main() -> None:
    """Measure, and write down what was found."""
    data, clip = load_data(digits(), validation=0, test=0.2), load_backbone()
    model = get_peft_model(clip.model, ResiDualConfig())
    train = collect_with_basis(model, batches(data.train, clip.image_processor))
    test = collect_coordinates(model, batches(data.test, clip.image_processor))
    results: dict[str, Any] = {"draws": DRAWS, "classes": {}, "bound": {}}
    blended = gains_method._share_of_images
    for title, names in (("names that fit", NAMES), ("names that say nothing", SAY_NOTHING)):
        made = ZeroShotClassifier.from_text(model, clip.tokenizer, names, ["a photo of a {}."])
        rows: dict[str, Any] = {
            "zero_shot": round(accuracy(made.logits(test.readout), test.labels), 4)
        }
        for way, share in (("texts", lambda rows: 0.0), ("blended with images", blended)):
            gains_method._share_of_images = share
            rows[way] = {str(shots): fits(made, train, test, shots) for shots in SHOTS}
        results["classes"][title] = rows
        print(title, json.dumps(rows), flush=True)
    made = ZeroShotClassifier.from_text(model, clip.tokenizer, NAMES, ["a photo of a {}."])
    usual = objectives.LEAST_VARIANCE
    for bound in BOUNDS:
        objectives.LEAST_VARIANCE = bound
        results["bound"][f"{bound:g}"] = {str(s): fits(made, train, test, s) for s in SHOTS}
        print(bound, json.dumps(results["bound"][f"{bound:g}"]), flush=True)
    objectives.LEAST_VARIANCE = usual
    write_json(OUT, results)


if __name__ == "__main__":
    main()
