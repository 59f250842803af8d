"""The demo: handwriting classified by a CLIP that never saw any, before and after adapting it."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..analysis.describing import dictionary_for
from ..classifiers.backbones import Backbone, load_backbone
from ..classifiers.evaluation import Evaluation
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import batches
from ..demo.tasks import HANDWRITING_TEMPLATES, handwriting, world_images, zero_shot_accuracy
from ..demo.world import TEMPLATES
from ..experiments import METHODS, Row, Task, run_method
from ..hub.directories import REPORT, RUN_DIRECTORY
from ..hub.facts import Facts
from ..hub.files import PathLike, atomic_directory, write_json
from ..reporting import HEADERS, markdown_table, table_cells, write_report
from ..solvers.coordinates import collect_coordinates
from ..tuner import gains_of
from .recording import record_run, run_facts

BASIS_IMAGES = 2000
WORLD_IMAGES_PER_TASK = 1000
RESULTS = "results.json"
BASIS = "images of the bundled model's drawn world, no handwriting"
DATASET = "scikit-learn's handwritten digits"
TITLE = "Handwritten digits, by a CLIP that was never shown any"


def handwriting_task(backbone: Backbone, *, basis_images: int = BASIS_IMAGES) -> Task:
    """Handwritten digits as a task; the bases are fitted on images of the world, not on digits."""
    splits = handwriting()

    def ready(split: Dataset, name: str) -> list[dict[str, Tensor]]:
        loader = batches(split, backbone.image_processor, name=name)
        return list(tqdm(loader, f"Preparing {name}", unit="batch", leave=False))

    return Task(
        backbone=backbone,
        class_names=tuple(splits["train"].features["label"].names),
        templates=HANDWRITING_TEMPLATES,
        train=ready(splits["train"], "training digits"),
        validation=ready(splits["validation"], "validation digits"),
        test=ready(splits["test"], "test digits"),
        basis=ready(world_images(basis_images), "world images"),
    )


def run_demo(
    out: PathLike,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = tuple(METHODS),
    world_images_per_task: int = WORLD_IMAGES_PER_TASK,
    basis_images: int = BASIS_IMAGES,
) -> dict[str, Any]:
    """Compare the methods on handwriting and write what came of it.

    There will be the default method's adapter for the first seed with its classes, `results.json`,
    a picture of its gains, a card and a report. What `results.json` holds is given back: `rows`,
    one per method and seed, and `world`, the bundled model's zero-shot accuracy per attribute of
    its own world.
    """
    backbone = load_backbone()
    with tqdm(TEMPLATES, "The model's own world", unit="task") as bar:
        world = zero_shot_accuracy(
            backbone.model,
            backbone.tokenizer,
            images_per_task=world_images_per_task,
            report=lambda name: bar.update(),
        )
    task = handwriting_task(backbone, basis_images=basis_images)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, atomic_directory(out) as directory:
        adapter = Path(folder) / "adapter"
        with tqdm(methods, "Handwriting", unit="method") as bar:
            for name in bar:
                method = METHODS[name]
                bar.set_description(method.label)
                keep = adapter if name == "default" else None
                rows += run_method(task, method, seeds, report=bar.set_postfix_str, keep=keep)
        results = {"rows": [asdict(row) for row in rows], "world": world}
        write_json(directory / RESULTS, results)
        if adapter.is_dir():
            _write_adapter(adapter, directory, Path(out).name, rows, task, seeds[0])
    return results


def _write_adapter(
    adapter: Path, directory: Path, location: str, rows: Sequence[Row], task: Task, seed: int
) -> None:
    """Save the adapter in its place, with a card that knows the results, and the page about it."""
    labels = {name: method.label for name, method in METHODS.items()}
    digits = handwriting()
    splits = {name: len(split) for name, split in digits.items()}
    kept = next(row for row in rows if row.method == "default" and row.seed == seed)
    facts = Facts(
        title=TITLE,
        dataset=DATASET,
        metrics={"accuracy": kept.test_accuracy},
        training_data=f"{splits['train']:,} of scikit-learn's handwritten digits",
        splits=splits,
        method="schedule-free AdamW on coordinates, as in the paper",
        fitting_seconds=kept.fit_seconds,
        basis_data=BASIS,
        seed=seed,
        license="apache-2.0",
        table=markdown_table(HEADERS, table_cells(rows, labels)),
    )
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    classifier.save_pretrained(directory, card=facts, location=location)
    facts = run_facts(classifier, directory, facts, location)
    with torch.no_grad():
        coordinates = collect_coordinates(classifier.model, task.test)
        adapted = coordinates.adapted(gains_of(classifier.model).detach())
        before, after = (
            Evaluation(classifier.class_names, classifier.logits(readout), coordinates.labels)
            for readout in (coordinates.readout, adapted)
        )
        texts = dictionary_for(task.backbone)
        record = record_run(classifier, digits["test"], before, after, facts, coordinates, texts)
    record.save(directory / RUN_DIRECTORY)
    write_report(record, directory / REPORT)
