"""By what `fit` should choose among methods: left-out log-loss, left-out accuracy, or not at all.

    python benchmarks/method_choice.py        # writes method_choice.json beside itself

The bundled CLIP on `bench_small.py`'s pictures (handwriting, clip art, noisy digits), so many
training images of each class, three draws, the bases of the drawn images as in `fit`: what each
method says of left-out training images, and how many of the test images it tells right. Then the
mean test accuracy of what each rule takes, of every method taken always, and of the best
afterwards, which nobody can know.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bench_small import PLACE, pictures
from peft import get_peft_model

from residual_peft import ResiDualConfig
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches, load_data
from residual_peft.hub.files import write_json
from residual_peft.solvers.coordinates import collect_coordinates, collect_with_basis
from residual_peft.solvers.methods import METHODS, Rows

DIGITS = ["the digit {}", "an image of the number {}"]
TASKS = {"handwriting": DIGITS, "clip-art": ["a {}", "an image of a {}"], "digits-noisy": DIGITS}
SHOTS, DRAWS = (4, 8, 16, 32), 3
TRIED = [name for name, method in METHODS.items() if method.tried]
Measured = dict[str, dict[str, float]]
RULES: dict[str, Callable[[Measured], str]] = {
    "least left-out log-loss": lambda m: min(m, key=lambda name: m[name]["left-out log-loss"]),
    "most left-out right": lambda m: max(
        m, key=lambda name: (m[name]["left-out accuracy"], -m[name]["left-out log-loss"])
    ),
    "best afterwards": lambda m: max(m, key=lambda name: m[name]["accuracy"]),
}


def measured(task: str, shots: int, seed: int, model: Any, backbone: Any) -> Measured:
    """Every method on one draw."""
    data, _ = load_data(str(PLACE / task), validation=0).without_repeated()
    labels = torch.tensor(data.train["label"])
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number in range(len(data.class_names)):
        own = (labels == number).nonzero().flatten()
        drawn.append(own[torch.randperm(len(own), generator=generator)[:shots]])
    rows = data.train.select(torch.cat(drawn).sort().values.tolist())
    train = collect_with_basis(model, batches(rows, backbone.image_processor, batch_size=64))
    test = collect_coordinates(model, batches(data.test, backbone.image_processor, batch_size=64))
    classifier = ZeroShotClassifier.from_text(
        model, backbone.tokenizer, data.class_names, TASKS[task]
    )
    given, found = Rows.of(classifier, train), {}
    for name in TRIED:
        outcome = METHODS[name].run(given)
        right = outcome.logits(classifier, test).argmax(1) == test.labels
        found[name] = {
            "left-out log-loss": round(outcome.left_out.log_loss, 4),
            "left-out accuracy": round(outcome.left_out.accuracy, 4),
            "accuracy": round(float(right.double().mean()), 4),
            "seconds": round(outcome.seconds, 3),
        }
    return found


def main() -> None:
    """Measure all draws, then the rules on them."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    backbone = load_backbone("residual_peft/demo-clip")
    model = get_peft_model(backbone.model, ResiDualConfig())
    draws: dict[str, Measured] = {}
    for task in TASKS:
        for shots in SHOTS:
            for seed in range(DRAWS):
                draws[f"{task}, {shots}, {seed}"] = measured(task, shots, seed, model, backbone)
                print(task, shots, seed, draws[f"{task}, {shots}, {seed}"], flush=True)
    taken = {
        rule: mean(one[choose(one)]["accuracy"] for one in draws.values())
        for rule, choose in RULES.items()
    }
    taken |= {
        f"always {name}": mean(one[name]["accuracy"] for one in draws.values()) for name in TRIED
    }
    rounded = {rule: round(value, 4) for rule, value in taken.items()}
    write_json(Path(__file__).with_suffix(".json"), {"accuracy": rounded, "draws": draws})


if __name__ == "__main__":
    main()
