"""What the Trainer should choose its epoch by, and stop by, where images are few.

    python benchmarks/choosing.py        # writes choosing.json beside itself; about five minutes

The README's way on the bundled model: bases from the training images, schedule-free AdamW at 0.8,
at most 30 epochs, patience 5; from coordinates, which give what the Trainer gives
(`tests/solvers/test_training.py`). Of every class so many images are drawn, a tenth of them (at
least one) to validate on, and all others are the test. Each run is trained once, and every rule is
asked when it would have stopped and which epoch it would have kept. Handwriting also with names
that say nothing, where the model starts at chance; `digits of three` has a newcomer's 25 images
a class.

`accuracy` keeps the first of equals; `loss` is the validation loss; `accuracy, then loss` breaks
ties by it, and stops by the same order; `last` trains all epochs and keeps the last.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import get_peft_model
from schedulefree import AdamWScheduleFree
from torch import Tensor
from tqdm.auto import tqdm

from residual_peft import ResiDualConfig, collect_coordinates, collect_with_basis
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches
from residual_peft.data.metrics import accuracy
from residual_peft.demo.tasks import handwriting, world_task
from residual_peft.hub.files import write_json
from residual_peft.solvers.training import BATCH_SIZE, EPOCHS, LEARNING_RATE, PATIENCE
from residual_peft.tuner import gains_of

SEEDS = 3
Score = tuple[float, ...]
RULES: dict[str, Callable[[float, float, int], Score]] = {
    "accuracy": lambda right, loss, epoch: (right,),
    "loss": lambda right, loss, epoch: (-loss,),
    "accuracy, then loss": lambda right, loss, epoch: (right, -loss),
    "last": lambda right, loss, epoch: (epoch,),
}
"""name -> what is compared after each epoch; the higher, the better."""


def tasks() -> Iterator[tuple[str, Dataset, list[str], tuple[int, ...]]]:
    """Name, images, class names and images per class."""
    digits = concatenate_datasets(list(handwriting().values()))
    names = digits.features["label"].names
    nothing = ["dax", "wug", "fep", "blick", "toma", "zup", "gazzer", "modi", "kiki", "lorp"]
    yield "digits", digits, names, (8, 20)
    yield "digits, names that say nothing", digits, nothing, (8, 20)
    three = [row for row, label in enumerate(digits["label"]) if label < 3]
    yield "digits of three, names that say nothing", digits.select(three), nothing[:3], (8, 25)
    for attribute in ("letter", "texture", "count"):
        images = world_task(attribute, 1000)
        yield f"world, {attribute}", images, images.features["label"].names, (8, 20)


def drawn(labels: list[int], shots: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Rows to train on, to validate on and to test on."""
    generator = torch.Generator().manual_seed(seed)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    held = max(1, round(shots / 10))
    for label in sorted(set(labels)):
        rows = [row for row, other in enumerate(labels) if other == label]
        order = [rows[i] for i in torch.randperm(len(rows), generator=generator)]
        validation += order[:held]
        train += order[held:shots]
        test += order[shots:]
    return train, validation, test


def epochs_of(classifier: ZeroShotClassifier, parts: list[Any], seed: int) -> list[dict[str, Any]]:
    """After each epoch: accuracy and loss on the validation images, accuracy on the test."""
    train, validation, test = parts
    gains = torch.nn.Parameter(gains_of(classifier.model).detach().float().clone())
    optimizer = AdamWScheduleFree([gains], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    found = []

    def logits(rows: Any) -> Tensor:
        return classifier.logits(rows.adapted(gains))

    for epoch in range(1, EPOCHS + 1):
        optimizer.train()
        for index in torch.randperm(len(train), generator=generator).split(BATCH_SIZE):
            rows = train.rows(index)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(rows), rows.labels).backward()
            optimizer.step()
        optimizer.eval()
        with torch.no_grad():
            held = logits(validation)
            loss = torch.nn.functional.cross_entropy(held, validation.labels).item()
            right = accuracy(held, validation.labels)
            tested = accuracy(logits(test), test.labels)
        found.append({"epoch": epoch, "accuracy": right, "loss": loss, "test": tested})
    return found


def kept(epochs: list[dict[str, Any]], rule: Callable[..., Score]) -> tuple[int, float]:
    """The epoch that a rule keeps, by the Trainer's early stopping, and its test accuracy."""
    best, best_score, waited = epochs[0], None, 0
    for each in epochs:
        score = rule(each["accuracy"], each["loss"], each["epoch"])
        if best_score is None or score > best_score:
            best, best_score, waited = each, score, 0
        else:
            waited += 1
        if waited >= PATIENCE:
            break
    return best["epoch"], best["test"]


def main() -> None:
    """Measure all."""
    clip = load_backbone()
    rows: list[dict[str, Any]] = []
    for name, images, names, sizes in tqdm(list(tasks()), "Tasks"):
        for shots in sizes:
            runs = []
            for seed in range(SEEDS):
                model = get_peft_model(load_backbone().model, ResiDualConfig())
                classifier = ZeroShotClassifier.from_text(
                    model, clip.tokenizer, names, ["a photo of a {}."]
                )
                train, *others = (
                    batches(images.select(part), clip.image_processor)
                    for part in drawn(images["label"], shots, seed)
                )
                parts: list[Any] = [collect_with_basis(model, train)]
                parts += [collect_coordinates(model, part) for part in others]
                runs.append(epochs_of(classifier, parts, seed))
            row: dict[str, Any] = {"task": name, "images_per_class": shots}
            for rule, score in RULES.items():
                chosen = [kept(run, score) for run in runs]
                row[rule] = {
                    "test_accuracy": round(mean(tested for _, tested in chosen), 4),
                    "by_seed": [round(tested, 4) for _, tested in chosen],
                    "epochs": [epoch for epoch, _ in chosen],
                }
            rows.append(row)
            tqdm.write(f"{name}, {shots}: {row}")
    means = {rule: round(mean(row[rule]["test_accuracy"] for row in rows), 4) for rule in RULES}
    result = {"seeds": SEEDS, "mean": means, "rows": rows}
    write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
