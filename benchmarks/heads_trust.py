"""What a class head's scores promise, and whether it holds: handwriting, the bundled model.

    python benchmarks/heads_trust.py             # all parts; writes heads_trust.json beside itself
    python benchmarks/heads_trust.py labels      # one part; the others stay as they are

All images of scikit-learn's digits together; each draw trains on so many of each class and measures
on others. Ridge, on the embedding and on the coordinates of heads and MLPs. All comes from
predictions of left-out training images: nothing is held out but for sets by held-out images.

`calibration`: expected calibration error of the head, of its scores without a and τ, and of the
zero-shot logits. `coverage`: prediction sets at .9 three ways, pooled over 20 draws, beside the
95 % of the beta-binomial of as many held-out images as are trained on. `none`: false alarms among
new digits at a nominal 5 %, and strangers refused: letters scanned as the digits were, and the
world's printed letters among its printed digits. `alarms`: false alarms on other images, shifted
ones of the world and clip art. `labels`: 5 % of wrong labels. `curve`: what 200
more images bring, foretold and then measured.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from heads_coverage import coverage_interval
from heads_tasks import (
    Rows,
    clip_art_rows,
    handwriting_rows,
    joined,
    shifted_rows,
    some_of,
    stranger_rows,
)
from torch import Tensor
from tqdm.auto import tqdm

from residual_peft.classifiers.heads import RidgeFit, fit_ridge
from residual_peft.classifiers.heads.conformal import (
    WAYS,
    By,
    PredictionSets,
    kept_scores,
    scores_of,
)
from residual_peft.classifiers.heads.jackknife_plus import PlusSets, RidgeWithout
from residual_peft.classifiers.heads.learning_curve import learning_curve
from residual_peft.classifiers.heads.trust import calibration_error, suspicious_labels
from residual_peft.classifiers.none_of_these import known_images
from residual_peft.hub.files import write_json

RESULTS = Path(__file__).with_suffix(".json")
FEATURES = ("embedding", "heads and MLPs")
COVERAGE = 0.9
ALARM = 0.05
WRONG = 0.05
DRAWS = 20


def draws_of(whole: Rows, shots: int, draws: int = DRAWS) -> Iterator[tuple[Rows, Rows]]:
    """So many of each class to train on, and all others."""
    for draw in range(draws):
        chosen = some_of(whole.labels, shots, torch.Generator().manual_seed(draw))
        others = torch.ones(len(whole), dtype=torch.bool)
        others[chosen] = False
        yield whole.rows(chosen), whole.rows(others)


def ridge(rows: Rows, kind: str, labels: Tensor | None = None) -> RidgeFit:
    """Ridge on one kind of features, weighing the text."""
    return fit_ridge(
        rows.features[kind],
        rows.labels if labels is None else labels,
        rows.class_count,
        zero_shot=rows.zero_shot,
    )


def by_shots(shots: tuple[int, ...], one: Callable[[int, str], Any]) -> dict[str, Any]:
    """One measurement per number of images of a class, and per kind of features."""
    found: dict[str, Any] = {}
    for count in shots:
        found[str(count)] = {}
        for kind in FEATURES:
            found[str(count)][kind] = one(count, kind)
            tqdm.write(f"{one.__qualname__} {count} {kind}: {found[str(count)][kind]}")
    return found


def calibration(digits: Rows) -> dict[str, Any]:
    """Expected calibration errors on new images, in 15 bins."""

    def one(shots: int, kind: str) -> dict[str, float]:
        errors: dict[str, list[float]] = {"head": [], "uncalibrated": [], "zero-shot": []}
        for train, test in draws_of(digits, shots):
            head = ridge(train, kind).head
            logits = {
                "head": head.logits(test.features[kind], test.zero_shot),
                "uncalibrated": head.scores(test.features[kind]),
                "zero-shot": test.zero_shot,
            }
            for name, values in logits.items():
                errors[name].append(calibration_error(values, test.labels))
        return {name: round(mean(values), 4) for name, values in errors.items()}

    return by_shots((4, 8, 16), one)


def coverage(digits: Rows) -> dict[str, Any]:
    """Shares of new images whose set holds their class."""

    def one(shots: int, kind: str) -> dict[str, Any]:
        covered: dict[str, list[float]] = {by: [] for by in WAYS}
        sizes: dict[str, list[float]] = {by: [] for by in WAYS}
        tested = []
        for draw, (train, others) in enumerate(draws_of(digits, shots)):
            fit = ridge(train, kind)
            generator = torch.Generator().manual_seed(1000 + draw)
            held_out = some_of(others.labels, shots, generator)
            rest = torch.ones(len(others), dtype=torch.bool)
            rest[held_out] = False
            test, apart = others.rows(rest), others.rows(held_out)
            logits = fit.head.logits(test.features[kind], test.zero_shot)
            known = fit.head.logits(apart.features[kind], apart.zero_shot)
            found = {"jackknife+": _plus(fit, train, test, kind)}
            scores: dict[By, Tensor | None] = {
                "held-out": kept_scores(known, apart.labels),
                "jackknife": scores_of(fit.left_out),
            }
            for by, own in scores.items():
                assert own is not None
                found[by] = PredictionSets(own, COVERAGE, by).sets(logits)
            for name, sets in found.items():
                right = sets[torch.arange(len(sets)), test.labels]
                covered[name].append(float(right.double().mean()))
                sizes[name].append(float(sets.double().sum(1).mean()))
            tested.append(len(test))
        interval = coverage_interval(shots * digits.class_count, tested[0], COVERAGE, draws=DRAWS)
        shares: dict[str, Any] = {name: round(mean(all_), 4) for name, all_ in covered.items()}
        return shares | {
            "between": [round(bound, 4) for bound in interval],
            "classes in a set": {name: round(mean(all_), 3) for name, all_ in sizes.items()},
        }

    return by_shots((2, 4, 8, 16), one)


def _plus(fit: RidgeFit, train: Rows, test: Rows, kind: str) -> Tensor:
    own = train.features[kind], train.labels, train.class_count
    without = RidgeWithout.of(fit, *own, zero_shot=train.zero_shot)
    return PlusSets.of(without, COVERAGE).sets(test.features[kind], test.zero_shot)


def refusing(train: Rows, kind: str) -> Callable[[Rows], Tensor]:
    """Which of others are called none of these at the nominal share (N,)."""

    def read(rows: Rows) -> tuple[Tensor, Tensor | None]:
        return rows.features["embedding"], None if kind == "embedding" else rows.features[kind]

    embedding, coordinates = read(train)
    known = known_images(embedding, train.labels, train.class_count, coordinates=coordinates)
    assert known is not None
    return lambda rows: known.p_values(*read(rows)) <= ALARM


def none(digits: Rows) -> dict[str, Any]:
    """False alarms and refusals."""
    strangers = stranger_rows()

    def one(shots: int, kind: str) -> dict[str, float]:
        alarms, letters, world, printed = [], [], [], []
        for train, test in draws_of(digits, shots):
            refused = refusing(train, kind)
            alarms.append(refused(test))
            letters.append(refused(strangers["letters"]))
        for train, test in draws_of(strangers["world digits"], shots):
            refused = refusing(train, kind)
            world.append(refused(test))
            printed.append(refused(strangers["world letters"]))
        shares = {
            "false alarms": alarms,
            "letters refused": letters,
            "world's false alarms": world,
            "world's letters refused": printed,
        }
        return {
            name: round(float(torch.cat(all_).double().mean()), 4) for name, all_ in shares.items()
        }

    return by_shots((4, 8, 16, 60), one)


def alarms(digits: Rows) -> dict[str, Any]:
    """False alarms on images that nothing was looked at with."""
    art = clip_art_rows()
    tasks = shifted_rows() | {"clip art": joined(art["train"], art["test"])}

    def one(shots: int, kind: str) -> dict[str, float]:
        return {
            name: round(
                mean(
                    float(refusing(train, kind)(test).double().mean())
                    for train, test in draws_of(rows, shots, 10)
                ),
                4,
            )
            for name, rows in tasks.items()
        }

    return by_shots((4, 8, 16), one)


def labels(digits: Rows) -> dict[str, Any]:
    """Precision and recall of labels that look wrong."""

    def one(shots: int, kind: str) -> dict[str, float]:
        hits = named = planted = 0
        for draw, (train, _) in enumerate(draws_of(digits, shots)):
            generator = torch.Generator().manual_seed(draw)
            wrong = torch.randperm(len(train), generator=generator)[: round(WRONG * len(train))]
            given = train.labels.clone()
            given[wrong] += torch.randint(1, 10, (len(wrong),), generator=generator)
            given %= 10
            rows = suspicious_labels(ridge(train, kind, given).left_out).rows()
            hits += len(set(rows) & set(wrong.tolist()))
            named, planted = named + len(rows), planted + len(wrong)
        return {"precision": round(hits / named, 4), "recall": round(hits / planted, 4)}

    return by_shots((8, 16, 32, 100), one)


def curve(digits: Rows) -> dict[str, Any]:
    """Points that 200 more images bring."""

    def one(shots: int, kind: str) -> dict[str, float]:
        foretold, real = [], []
        for draw, (train, others) in enumerate(draws_of(digits, shots, 10)):
            more = some_of(others.labels, 20, torch.Generator().manual_seed(1000 + draw))
            rest = torch.ones(len(others), dtype=torch.bool)
            rest[more] = False
            test = others.rows(rest)

            def right(fitted: Rows, told: Rows) -> float:
                logits = ridge(fitted, kind).head.logits(told.features[kind], told.zero_shot)
                return float((logits.argmax(1) == told.labels).double().mean())

            def subset(inside: Tensor, outside: Tensor, train: Rows = train) -> float:
                return right(train.rows(inside), train.rows(outside))

            now = ridge(train, kind).left_out.accuracy
            law = learning_curve(subset, now, train.labels, 10)
            foretold.append(100 * law.gain(200))
            real.append(100 * (right(joined(train, others.rows(more)), test) - right(train, test)))
        apart = [abs(a - b) for a, b in zip(foretold, real, strict=True)]
        return {
            "foretold": round(mean(foretold), 2),
            "real": round(mean(real), 2),
            "apart": round(mean(apart), 2),
            "most": round(max(apart), 2),
        }

    return by_shots((8, 16, 32), one)


PARTS: dict[str, Callable[[Rows], Any]] = {
    part.__name__: part for part in (calibration, coverage, none, alarms, labels, curve)
}


def main() -> None:
    """Measure the parts that are named, or all."""
    parts = handwriting_rows()
    digits = joined(parts["train"], parts["validation"], parts["test"])
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or PARTS:
        results[name] = PARTS[name](digits)
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
