"""Trained classes and new ones in one answer: base-to-novel accuracy of a class head.

    python benchmarks/heads_novel.py        # minutes; writes heads_novel.json beside itself

Half of a task's classes, drawn anew in each of ten draws, are trained on with 4 or 16 images each;
the others are known by their text alone. `TrainedHead.logits` answers for all of them at once. For
test images of trained classes and of new ones: accuracy among all classes, their harmonic mean, and
accuracy among the classes of their own half, as CoCoOp measures it (Zhou et al., 2022); new classes
are then told by zero-shot alone, whatever the head. Features are those of `heads_tasks.py`.

`head` is the ridge on coordinates of heads and MLPs as it is fitted; `no text` the same with a = 0,
so that trained classes do not hear their text at all.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from heads_tasks import Rows, clip_art_rows, handwriting_rows, joined, shifted_rows, some_of
from torch import Tensor
from tqdm.auto import tqdm

from residual_peft.classifiers.heads import fit_ridge
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.hub.files import write_json

DRAWS, SHOTS, KIND = 10, (4, 16), "heads and MLPs"
RESULTS = Path(__file__).with_suffix(".json")


def halves(rows: Rows, generator: torch.Generator) -> tuple[Rows, int]:
    """The task with its classes in another order, of which the first so many are trained on."""
    order = torch.randperm(rows.class_count, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    moved = Rows(rows.features, rows.zero_shot[:, order], place[rows.labels], rows.text[order])
    return moved, rows.class_count // 2


def draw(rows: Rows, shots: int, seed: int) -> dict[str, dict[str, float]]:
    """One draw of classes and of their images."""
    generator = torch.Generator().manual_seed(seed)
    rows, count = halves(rows, generator)
    chosen = some_of(rows.labels, shots, generator)
    chosen = chosen[rows.labels[chosen] < count]
    left = torch.ones(len(rows), dtype=torch.bool)
    left[chosen] = False
    train, test = rows.rows(chosen), rows.rows(left)
    head = fit_ridge(
        train.features[KIND], train.labels, count, zero_shot=train.zero_shot[:, :count]
    ).head
    answers = {"zero-shot": test.zero_shot}
    for name, one in {"head": head, "no text": replace(head, text_weight=0.0)}.items():
        answers[name] = TrainedHead(one).logits(test.zero_shot, test.features[KIND])
    found = {name: scores(logits, test.labels, count) for name, logits in answers.items()}
    found["head"]["text weight"] = head.text_weight
    return found


def scores(logits: Tensor, labels: Tensor, count: int) -> dict[str, float]:
    """Accuracy on images of trained classes and of new ones."""
    base = labels < count
    right = (logits.argmax(1) == labels).double()
    trained, new = float(right[base].mean()), float(right[~base].mean())
    own = (
        torch.where(base, logits[:, :count].argmax(1), count + logits[:, count:].argmax(1))
        == labels
    )
    return {
        "trained": trained,
        "new": new,
        "harmonic mean": 2 * trained * new / max(trained + new, 1e-9),
        "trained among trained": float(own[base].double().mean()),
        "new among new": float(own[~base].double().mean()),
    }


def summary(each: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over the draws, and the harmonic mean's standard deviation."""
    found: dict[str, Any] = {}
    for name, first in each[0].items():
        found[name] = {key: round(mean(one[name][key] for one in each), 4) for key in first}
        spread = stdev(one[name]["harmonic mean"] for one in each)
        found[name]["spread"] = round(spread, 4)
    return found


def main() -> None:
    """All tasks."""
    tasks = {
        "handwriting": joined(*handwriting_rows().values()),
        "clip art, 30 subjects": joined(*clip_art_rows().values()),
        **shifted_rows(),
    }
    found: dict[str, Any] = {"draws": DRAWS, "features": KIND, "tasks": {}}
    for task, rows in tqdm(tasks.items()):
        found["tasks"][task] = {
            str(shots): summary([draw(rows, shots, seed) for seed in range(DRAWS)])
            for shots in SHOTS
        }
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
