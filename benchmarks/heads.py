"""Class heads against everything else that tells classes apart: the bundled model.

    python benchmarks/heads.py                    # all parts; writes heads.json beside itself
    python benchmarks/heads.py handwriting        # one part; the others stay as they are

`handwriting`: accuracy on the test images, mean and standard deviation over `few_shot.py`'s draws
of the training images. Heads and their rivals get no validation images; the gains and the linear
map of `few_shot.json`, and LoRA, got as many as training images. Ridge "chosen" chooses among
features and powers p by the log-loss of images left out.

`lora`: LoRA on the same draws, rank, rate and epoch chosen on the validation images.

`paired`: ridge on coordinates against the rivals on the embedding, over ten draws, each measured on
at least 400 images: handwriting (all splits together), clip art and the world's shifted tasks. The
best rival is the one with the best mean over the draws, chosen on the test images in its favour.

`cost`: the fit against one Gram matrix and one eigendecomposition, the choice against the pass.

`predicting`: a prediction against a forward pass.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from heads_cost import cost, predicting
from heads_lora import lora
from heads_tasks import CACHE, Rows, clip_art_rows, handwriting_rows, joined, shifted_rows, some_of
from tqdm.auto import tqdm

from residual_peft.classifiers.heads import Scorer, choose_ridge, fit_ridge
from residual_peft.classifiers.heads.discriminant import fit_discriminant
from residual_peft.classifiers.heads.gaussian import fit_gaussian
from residual_peft.classifiers.heads.logistic import fit_logistic
from residual_peft.classifiers.heads.nearest import fit_means, fit_neighbours
from residual_peft.classifiers.heads.proker import fit_proker
from residual_peft.classifiers.heads.tip_adapter import fit_tip_adapter, fit_tip_adapter_f
from residual_peft.hub.files import write_json

SHOTS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
DRAWS = 5
PAIRED_SHOTS = (4, 8, 16)
PAIRED_DRAWS = 10
TRAIN_SHARE = 0.6
"""Of the images of a task without a split: all of these are the largest training set."""
SLOW = ("Tip-Adapter-F, embedding",)
"""Left out with all images, where it is far from the best on handwriting."""
RESULTS = Path(__file__).with_suffix(".json")
COORDINATES = ("heads", "heads and MLPs")
Fit = Callable[[Rows], Scorer]


def on(kind: str, fit: Any, **options: Any) -> Fit:
    """A method on one kind of features."""

    def fitted(rows: Rows) -> Scorer:
        return Of(
            kind,
            fit(
                rows.features[kind],
                rows.labels,
                rows.class_count,
                zero_shot=rows.zero_shot,
                **options,
            ),
        )

    return fitted


class Of:
    """A fit and the features it is of."""

    def __init__(self, kind: str, fit: Any) -> None:
        self.kind, self.fit = kind, fit
        self.scorer: Scorer = getattr(fit, "head", fit)

    def right(self, rows: Rows) -> float:
        """Share of the images told right."""
        logits = self.scorer.logits(rows.features[self.kind], rows.zero_shot)
        return float((logits.argmax(1) == rows.labels).double().mean())


def chosen(kinds: tuple[str, ...]) -> Fit:
    """Ridge on the features, and with the p, of the least left-out log-loss."""

    def fitted(rows: Rows) -> Scorer:
        features = {kind: rows.features[kind] for kind in kinds}
        choice = choose_ridge(features, rows.labels, rows.class_count, zero_shot=rows.zero_shot)
        return Of(choice.name, choice.fit)

    return fitted


OURS: dict[str, Fit] = {
    "ridge, heads": on("heads", fit_ridge),
    "ridge, heads and MLPs": on("heads and MLPs", fit_ridge),
    "ridge, coordinates chosen": chosen(COORDINATES),
}
ON_EMBEDDING: dict[str, Fit] = {
    f"{name}, embedding": on("embedding", fit)
    for name, fit in {
        "ridge": fit_ridge,
        "logistic regression": fit_logistic,
        "discriminant analysis": fit_discriminant,
        "class means": fit_means,
        "k-NN": fit_neighbours,
        "Tip-Adapter": fit_tip_adapter,
        "Tip-Adapter-F": fit_tip_adapter_f,
        "GDA": fit_gaussian,
        "ProKeR": fit_proker,
    }.items()
}


RIVALS = {
    f"{name}, embedding": ON_EMBEDDING[f"{name}, embedding"]
    for name in (
        "ridge",
        "logistic regression",
        "discriminant analysis",
        "class means",
        "k-NN",
        "Tip-Adapter-F",
        "GDA",
        "ProKeR",
    )
}
"""Those that are measured in pairs."""


def measured(fit: Fit, train: Rows, test: Rows) -> dict[str, float]:
    """One method on one draw."""
    started = time.perf_counter()
    found: Any = fit(train)
    seconds = time.perf_counter() - started
    return {
        "accuracy": found.right(test),
        "seconds": seconds,
        "trained": found.scorer.parameter_count,
    }


def summary(each: list[dict[str, float]]) -> dict[str, float]:
    """Mean over draws, with their spread."""
    values = [scores["accuracy"] for scores in each]
    found = {"accuracy": round(mean(values), 4)}
    if len(values) > 1:
        found["spread"] = round(stdev(values), 4)
    found["seconds"] = round(mean(scores["seconds"] for scores in each), 3)
    return found | {"trained": round(mean(scores["trained"] for scores in each))}


def handwriting() -> dict[str, Any]:
    """The first table: `few_shot.py`'s draws."""
    parts = handwriting_rows()
    train, test = parts["train"], parts["test"]
    gains = json.loads(RESULTS.with_name("few_shot.json").read_text())["images_per_class"]
    methods = OURS | {"ridge, all chosen": chosen((*COORDINATES, "embedding"))} | ON_EMBEDDING
    found: dict[str, Any] = {}
    for shots in tqdm(SHOTS, "Handwriting"):
        draws = range(DRAWS if shots is not None else 1)
        rows = [
            train.rows(some_of(train.labels, shots, torch.Generator().manual_seed(d)))
            for d in draws
        ]
        name = "all" if shots is None else str(shots)
        found[name] = {"gains": gains[name]["default"], "linear map": gains[name]["linear"]}
        for method, fit in methods.items():
            found[name][method] = summary([measured(fit, few, test) for few in rows])
            tqdm.write(f"{name} {method}: {found[name][method]}")
    zero_shot = float((test.zero_shot.argmax(1) == test.labels).double().mean())
    return {"draws": DRAWS, "zero_shot": round(zero_shot, 4), "images_per_class": found}


def draws_of(parts: dict[str, Rows], shots: int | None) -> Iterator[tuple[Rows, Rows]]:
    """Training and test images, ten times; the test images are fixed where there is a split.

    All of a fixed training set are the same each time: nine tenths of them are drawn instead.
    """
    for draw in range(PAIRED_DRAWS):
        generator = torch.Generator().manual_seed(1000 + draw)
        if "test" in parts:
            train, test = parts["train"], parts["test"]
            share = 0.9 if shots is None else 1.0
            order = torch.randperm(len(train), generator=generator)
            train = train.rows(order[: round(share * len(train))])
        else:
            whole = parts["all"]
            order = torch.randperm(len(whole), generator=generator)
            cut = int(TRAIN_SHARE * len(whole))
            train, test = whole.rows(order[:cut]), whole.rows(order[cut:])
        assert len(test) >= 400, f"wanted 400 test images, got {len(test)}"
        yield train.rows(some_of(train.labels, shots, generator)), test


def paired() -> dict[str, Any]:
    """Ridge on coordinates against the best rival on the embedding; a killed run goes on."""
    digits = handwriting_rows()
    tasks = {"handwriting": {"all": joined(digits["train"], digits["validation"], digits["test"])}}
    tasks["clip art, 30 subjects"] = clip_art_rows()
    tasks |= {name: {"all": rows} for name, rows in shifted_rows().items()}
    kept = CACHE / "paired_scores.json"
    done: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    found: dict[str, Any] = {task: {} for task in tasks}
    for shots in (*PAIRED_SHOTS, None):
        name = "all" if shots is None else str(shots)
        for task, parts in tasks.items():
            draws = list(draws_of(parts, shots))
            scores = {}
            for method in OURS | RIVALS:
                if shots is None and method in SLOW:
                    continue
                key = f"{task}, {name}, {method}"
                if key not in done:
                    fit = (OURS | RIVALS)[method]
                    done[key] = [measured(fit, *draw)["accuracy"] for draw in draws]
                    write_json(kept, done)
                scores[method] = done[key]
            found[task][name] = differences(scores) | {"test_images": len(draws[0][1])}
            tqdm.write(f"{task}, {name}: {found[task][name]}")
    return {"draws": PAIRED_DRAWS, "tasks": found}


def differences(scores: dict[str, list[float]]) -> dict[str, Any]:
    """Mean accuracy of each method, and ours less the best rival's, draw by draw."""
    found: dict[str, Any] = {name: round(mean(values), 4) for name, values in scores.items()}
    best = max((name for name in scores if name in RIVALS), key=lambda name: mean(scores[name]))
    for ours in OURS:
        gaps = [a - b for a, b in zip(scores[ours], scores[best], strict=True)]
        found[f"{ours}, less the best rival"] = {
            "rival": best,
            "points": round(100 * mean(gaps), 2),
            "error": round(100 * stdev(gaps) / len(gaps) ** 0.5, 2),
        }
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "handwriting": handwriting,
    "lora": lora,
    "paired": paired,
    "cost": cost,
    "predicting": predicting,
}


def main() -> None:
    """Measure the parts that are named, or all."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or PARTS:
        results[name] = PARTS[name]()
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
