"""A tiny task for the runner: images of three brightnesses, a random CLIP that lies on disk."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.experiments import Task
from tests.training_case import NAMES, save_clip
from tests.training_case import task as images


def tiny_task(folder: Path) -> Task:
    """36 training images, 12 to choose by and 12 to report on, 48 others for the bases."""
    save_clip(folder)
    backbone = load_backbone(folder)
    data, processor = images(), backbone.image_processor

    def ready(split) -> list[dict[str, Tensor]]:
        return list(batches(split, processor, batch_size=9))

    return Task(
        backbone=backbone,
        class_names=NAMES,
        templates=("a {}.",),
        train=ready(data.train),
        validation=ready(data.validation),
        test=ready(data.test),
        basis=[{"pixel_values": batch["pixel_values"]} for batch in ready(images(48, 7).train)],
    )


def with_another_test_split(task: Task) -> Task:
    """The same images to report on with wrong labels, and more of them."""
    wrong = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in task.test]
    return replace(task, test=[*wrong, {k: v.flip(0) for k, v in wrong[0].items()}])


def count(split) -> int:
    return sum(len(batch["pixel_values"]) for batch in split)


def labels_of(split) -> Tensor:
    return torch.cat([batch["labels"] for batch in split])
