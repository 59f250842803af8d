"""The demo: handwriting classified by a CLIP that never saw any, before and after adapting it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..backbones import Backbone, load_backbone
from ..data import batches
from ..experiments import METHODS, Row, Task, run_method
from ..files import PathLike, atomic_directory, write_json
from ..reporting import HEADERS, gains_figure, markdown_table, model_card, table_cells, write_card
from ..tuner import gains_by_unit
from ..zero_shot import ZeroShotClassifier
from .measuring import zero_shot_accuracy
from .tasks import HANDWRITING_TEMPLATES, handwriting, world_images
from .world import TEMPLATES

BASIS_IMAGES = 2000
WORLD_IMAGES_PER_TASK = 1000
FIGURE, RESULTS, CARD = "gains.png", "results.json", "README.md"


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

    Args:
        out: the directory to write to: the default method's adapter for the first seed with its
            classes, `results.json`, a picture of its gains and a card.
        seeds: each method is fitted once per seed.
        methods: names from `METHODS`; the adapter is written if "default" is among them.
        world_images_per_task: held-out images per attribute of the world.
        basis_images: images of the world that the bases are fitted on.

    Returns:
        What `results.json` holds: `rows`, one per method and seed, and `world`, the bundled model's
        zero-shot accuracy per attribute of its own world.
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
        results = {"rows": [row.as_dict() for row in rows], "world": world}
        write_json(directory / RESULTS, results)
        if adapter.is_dir():
            _write_adapter(adapter, directory, Path(out).name, rows, task, seeds[0])
    return results


def _write_adapter(
    adapter: Path, directory: Path, location: str, rows: Sequence[Row], task: Task, seed: int
) -> None:
    """Move the adapter to its place, and put the picture and the card beside it."""
    for file in adapter.iterdir():
        file.rename(directory / file.name)
    classifier = ZeroShotClassifier.from_pretrained(directory)
    gains = gains_by_unit(classifier.model)
    gains_figure(
        {unit: values.tolist() for unit, values in gains.items()},
        directory / FIGURE,
        title="ResiDual on handwritten digits",
    )
    labels = {name: method.label for name, method in METHODS.items()}
    sizes = [sum(len(batch["labels"]) for batch in part) for part in (task.train, task.test)]
    card = model_card(
        title="Handwritten digits, by a CLIP that was never shown any",
        base_model=task.backbone.name,
        gains_count=f"{sum(len(values) for values in gains.values()):,}",
        units=sorted({unit.kind for unit in gains}),
        table=markdown_table(HEADERS, table_cells(rows, labels)),
        test_images=sizes[1],
        figure=FIGURE,
        location=location,
        class_names=task.class_names,
        templates=task.templates,
        training_data=f"{sizes[0]:,} of scikit-learn's handwritten digits",
        basis_data="images of the bundled model's drawn world, no handwriting",
        seed=seed,
    )
    write_card(directory / CARD, card)
