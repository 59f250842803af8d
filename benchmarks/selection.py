"""Which heads carry a task: accuracy when only the chosen ones are summed, and what ablation costs.

    python benchmarks/selection.py        # writes selection.json beside itself; about two minutes

The bundled model (48 heads) on handwriting and the nine attributes of its own world. Heads are
ranked on validation images; every accuracy is that of test images drawn with another seed. S: each
head's accuracy alone; U: correlation with the readout; U|T: the same along the class embeddings;
R: ten random draws. H: all heads; B: the whole model; O: one gain per head, fitted on training
images. A margin is an accuracy less that of R, with its 95 % interval.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm.auto import tqdm

from residual_peft.analysis import (
    DEFAULT_BUDGETS,
    Contributions,
    Ranking,
    SelectionCurve,
    SelectionStudy,
    coarse_optimum,
    collect_contributions,
    compare_selections,
    layer_ablation,
    overlap,
    unit_ablation,
)
from residual_peft.classifiers.backbones import Backbone, load_backbone
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting, world_task
from residual_peft.demo.world import ATTRIBUTES, TEMPLATES
from residual_peft.hub.files import write_json

SIZES = {"train": 500, "validation": 1000, "test": 1000}  # of the world's tasks
ABLATIONS = ("zero", "mean")
CLAIMED = (0.05, 0.1, 0.25)  # shares of the heads that the finding is told of
Splits = dict[str, Contributions]


def tasks(backbone: Backbone) -> Iterator[tuple[str, ZeroShotClassifier, Splits]]:
    """Name, classifier and contributions of each task."""

    def ready(name: str, splits: Any, templates: Any) -> tuple[str, ZeroShotClassifier, Splits]:
        names = splits["train"].features["label"].names
        seen = {
            part: collect_contributions(
                backbone.model, batches(splits[part], backbone.image_processor)
            )
            for part in SIZES
        }
        classifier = ZeroShotClassifier.from_text(
            backbone.model, backbone.tokenizer, names, templates
        )
        return name, classifier, seen

    yield ready("handwriting", handwriting(), HANDWRITING_TEMPLATES)
    for attribute in ATTRIBUTES:
        splits = {
            part: world_task(attribute, size, seed=seed)
            for seed, (part, size) in enumerate(SIZES.items(), 1)
        }
        yield ready(f"world: {attribute}", splits, TEMPLATES[attribute])


def rounded(values: Any) -> list[float]:
    """To four places."""
    return [round(value, 4) for value in values]


def curve_rows(study: SelectionStudy, curve: SelectionCurve) -> dict[str, Any]:
    """Accuracies by budget, with the spread of draws or the margin over them."""
    found: dict[str, Any] = {"accuracy": rounded(point.accuracy for point in curve.points)}
    if curve.letter == "R":
        return found | {"spread": rounded(point.spread or 0.0 for point in curve.points)}
    margins = curve.margin_over(study.curve("R"))
    return found | {
        "margin": rounded(margin.difference for margin in margins),
        "margin_low": rounded(margin.low for margin in margins),
        "margin_high": rounded(margin.high for margin in margins),
    }


def layers(seen: Splits, embeddings: torch.Tensor, ablation: Any) -> dict[str, Any]:
    """Drops of accuracy by layer, for heads, MLPs and both."""
    found: dict[str, Any] = {}
    for kinds in (("head",), ("mlp",), ("head", "mlp")):
        for cumulative in (False, "from_first", "from_last"):
            curve = layer_ablation(
                seen["test"],
                embeddings,
                kinds,
                ablation=ablation,
                cumulative=cumulative,
                reference=seen["validation"],
            )
            name = f"{' and '.join(kinds)}, {cumulative or 'one by one'}"
            found[name] = {point.name: round(point.drop, 4) for point in curve.points}
    return found


def measure(
    classifier: ZeroShotClassifier, seen: Splits
) -> tuple[dict[str, Any], dict[str, SelectionStudy]]:
    """All of one task."""
    embeddings = classifier.class_embeddings
    optimum = coarse_optimum(
        seen["train"], seen["validation"], embeddings, logit_scale=classifier.logit_scale
    )
    found: dict[str, Any] = {
        "classes": len(embeddings),
        "test_images": len(seen["test"]),
        "coarse": {"objective": optimum.objective, "strength": optimum.strength},
    }
    studies = {}
    for ablation in ABLATIONS:
        study = compare_selections(
            seen["validation"], seen["test"], embeddings, ablation=ablation, optimum=optimum
        )
        studies[ablation] = study
        single = unit_ablation(
            seen["test"], embeddings, ["head"], ablation=ablation, reference=seen["validation"]
        )
        worst = max(single.points, key=lambda point: point.drop)
        found[ablation] = {
            "lines": {line.letter: round(line.accuracy, 4) for line in study.lines},
            "curves": {curve.letter: curve_rows(study, curve) for curve in study.curves},
            "top heads": {
                ranking.letter: [str(unit) for unit in ranking.top(0.1)]
                for ranking in study.rankings
            },
            "largest drop by one head": {worst.name: round(worst.drop, 4)},
            "layer drops": layers(seen, embeddings, ablation),
        }
    return found, studies


def finding(studies: dict[str, SelectionStudy]) -> dict[str, Any]:
    """Margins over random heads by task, their means, and where there is none."""
    found: dict[str, Any] = {}
    for letter in ("S", "U", "U|T"):
        by_task: dict[str, dict[str, float]] = {}
        fails = []
        for task, study in studies.items():
            for margin in study.curve(letter).margin_over(study.curve("R")):
                if margin.budget not in CLAIMED:
                    continue
                difference, low, high = rounded((margin.difference, margin.low, margin.high))
                by_task.setdefault(task, {})[str(margin.budget)] = difference
                if low <= 0:
                    row = {"task": task, "budget": margin.budget, "margin": difference}
                    fails.append(row | {"low": low, "high": high})
        means = {str(b): round(mean(row[str(b)] for row in by_task.values()), 4) for b in CLAIMED}
        found[letter] = {
            "margin_by_task": by_task,
            "mean_margin": means,
            "does_not_hold": fails,
        }
    for letter in ("S", "U", "U|T", "R"):
        found.setdefault(letter, {})["share_of_H"] = {
            str(b): round(mean(of_all_heads(study, letter, b) for study in studies.values()), 4)
            for b in CLAIMED
        }
    return found


def of_all_heads(study: SelectionStudy, letter: str, budget: float) -> float:
    """Accuracy of the chosen heads as a share of that of all heads."""
    points = {point.budget: point for point in study.curve(letter).points}
    return points[budget].accuracy / study.line("H").accuracy


def overlaps(studies: dict[str, dict[str, SelectionStudy]]) -> dict[str, Any]:
    """Jaccard overlap of the tasks' chosen heads."""
    found: dict[str, Any] = {}
    for index, letter in enumerate(("S", "U", "U|T")):
        rankings: dict[str, Ranking] = {
            task: each["zero"].rankings[index] for task, each in studies.items()
        }
        total = len(next(iter(rankings.values())).units)
        for share in (0.1, 0.25):
            matrix = overlap({task: one.top(share) for task, one in rankings.items()}, total)
            rows = matrix.rows()
            found[f"{letter}, top {share:.0%}"] = {
                "mean": round(mean(row["jaccard"] for row in rows), 4),
                "chance": round(mean(row["chance"] for row in rows), 4),
                "closest": max(rows, key=lambda row: row["jaccard"]),
                "values": [rounded(row) for row in matrix.values],
            }
    return found


def main() -> None:
    """Measure all tasks."""
    results: dict[str, Any] = {"budgets": list(DEFAULT_BUDGETS), "tasks": {}}
    studies: dict[str, dict[str, SelectionStudy]] = {}
    with tqdm(tasks(load_backbone()), "Tasks", total=1 + len(ATTRIBUTES), unit="task") as bar:
        for name, classifier, seen in bar:
            results["tasks"][name], studies[name] = measure(classifier, seen)
            bar.set_postfix_str(name)
    results["overlap"] = overlaps(studies)
    results["summary"] = {
        ablation: finding({task: each[ablation] for task, each in studies.items()})
        for ablation in ABLATIONS
    }
    write_json(Path(__file__).with_suffix(".json"), results)


if __name__ == "__main__":
    main()
