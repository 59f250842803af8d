"""LoRA on `few_shot.py`'s draws of handwriting: rank, rate and epoch as anyone would choose them.

Called by `heads.py lora`. On each draw the rate is that of the best validation accuracy, with as
many validation images of each class as there are training images; so is the epoch. Seconds are
those of the fit that was chosen; all that were tried took `len(RATES)` times as long.
"""

import json
import time
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch
from heads_tasks import CACHE, some_of
from torch import Tensor
from tqdm.auto import tqdm

from residual_peft.app.demonstration import handwriting_task
from residual_peft.bases.reading import reading
from residual_peft.classifiers.backbones import load_backbone, load_image_tower
from residual_peft.data.metrics import accuracy
from residual_peft.experiments import LoraSettings, Task
from residual_peft.experiments.lora import fit_lora
from residual_peft.hub.files import write_json

RANKS = (8, 16)
RATES = (2e-3, 5e-3, 1e-2)
EPOCHS = {4: 40, 8: 25, 16: 15, None: 6}
DRAWS = {4: 5, 8: 5, 16: 5, None: 1}

Batch = dict[str, Tensor]


def whole(part: Any) -> Batch:
    """All images of a split as one batch."""
    parts = list(part)
    return {name: torch.cat([batch[name] for batch in parts]) for name in parts[0]}


def rows_of(part: Batch, index: Tensor) -> list[Batch]:
    """Some images, in batches."""
    return [{name: values[rows] for name, values in part.items()} for rows in index.split(64)]


@torch.no_grad()
def score(classifier: Any, part: Sequence[Batch]) -> float:
    """Accuracy of the adapted tower."""
    seen = list(reading(classifier.model, None, part, adapters=True, labelled=True))
    logits = torch.cat([classifier.logits(each.readout) for each in seen])
    return accuracy(logits, torch.cat([batch["labels"] for batch in part]))


def fitted(
    task: Task, few: list[Batch], validation: list[Batch], settings: LoraSettings, seed: int
) -> tuple[float, Any, float, int]:
    """Validation accuracy, classifier, seconds and trained numbers of one fit."""
    classifier = task.classifier(load_image_tower(task.backbone.name))
    started = time.perf_counter()
    model = fit_lora(classifier, few, validation, settings, seed)
    seconds = time.perf_counter() - started
    count, _ = model.get_nb_trainable_parameters()
    return score(classifier, validation), classifier, seconds, count


def one_draw(task: Task, parts: list[Batch], shots: int | None, rank: int, draw: int) -> Any:
    """Test accuracy, seconds, trained numbers and rate of the fit that validation images chose."""
    train, validation, test = parts
    generator = torch.Generator().manual_seed(draw)
    few, held = (
        rows_of(part, some_of(part["labels"], shots, generator)) for part in (train, validation)
    )
    fits = []
    for rate in RATES:
        settings = LoraSettings(rank=rank, learning_rate=rate, epochs=EPOCHS[shots])
        fits.append((*fitted(task, few, held, settings, draw), rate))
    # of equal rates the middle one, which is the demo's
    _, classifier, seconds, count, rate = max(fits, key=lambda f: (f[0], f[-1] == RATES[1]))
    tested = score(classifier, rows_of(test, torch.arange(len(test["labels"]))))
    return {"accuracy": tested, "seconds": seconds, "trained": count, "rate": rate}


def lora() -> dict[str, Any]:
    """Accuracy on the test images by rank and images per class; a killed run goes on."""
    task = handwriting_task(load_backbone(), basis_images=64)
    parts = [whole(part) for part in (task.train, task.validation, task.test)]
    kept = CACHE / "lora.json"
    done = json.loads(kept.read_text()) if kept.exists() else {}
    # a draw of every size first, so that a run that is stopped has said something of all
    order = [(draw, rank, shots) for draw in range(5) for rank in RANKS for shots in EPOCHS]
    for draw, rank, shots in order:
        key = name_of(shots, rank, draw)
        if draw < DRAWS[shots] and key not in done:
            done[key] = one_draw(task, parts, shots, rank, draw)
            tqdm.write(f"{key}: {done[key]}")
            write_json(kept, done)
    return {
        "epochs": {str(shots or "all"): epochs for shots, epochs in EPOCHS.items()},
        "images_per_class": {
            str(shots or "all"): {f"LoRA r={rank}": summary(done, shots, rank) for rank in RANKS}
            for shots in EPOCHS
        },
    }


def name_of(shots: int | None, rank: int, draw: int) -> str:
    """What one draw is kept under."""
    return f"{shots or 'all'}, r={rank}, draw {draw}, {EPOCHS[shots]} epochs"


def summary(done: dict[str, Any], shots: int | None, rank: int) -> dict[str, Any]:
    """Mean over the draws that there are, with their spread."""
    names = [name_of(shots, rank, draw) for draw in range(DRAWS[shots])]
    each = [done[name] for name in names if name in done]
    if not each:
        return {"draws": 0}
    scores = [fit["accuracy"] for fit in each]
    row = {"draws": len(each), "accuracy": round(mean(scores), 4)}
    if len(scores) > 1:
        row["spread"] = round(stdev(scores), 4)
    row |= {"seconds": round(mean(fit["seconds"] for fit in each), 1)}
    return row | {"trained": each[0]["trained"], "rates": [fit["rate"] for fit in each]}
