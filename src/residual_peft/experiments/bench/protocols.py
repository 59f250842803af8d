"""Which images and classes one run is of."""

from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...classifiers.zero_shot import ZeroShotClassifier
from ...errors import ResiDualError
from .entries import Protocol


@dataclass(frozen=True)
class Draw:
    """Training images and classes of one seed."""

    rows: Tensor  # training images, numbers in the training split, by class
    classes: Tensor  # numbers of the classes that are trained on, increasing
    novel: Tensor  # those of the others
    validation: Tensor = field(default_factory=lambda: torch.arange(0))  # images to choose by

    @property
    def learned(self) -> Tensor:
        """Training images, then those to choose by."""
        return torch.cat([self.rows, self.validation])


def draw(protocol: Protocol, labels: Tensor, class_count: int, seed: int) -> Draw:
    """The images and classes of one run, the same in every run with this seed.

    Labels are those of the training split (N,).

    Raises:
        ResiDualError: fewer than four classes to halve.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, novel = torch.arange(class_count), torch.arange(0)
    if protocol.kind == "base-to-novel":
        if class_count < 4:
            raise ResiDualError(
                f"wanted four classes or more to train on half of them, got {class_count}: leave "
                "the protocol out for this data set."
            )
        order = torch.randperm(class_count, generator=generator)
        half = -(-class_count // 2)
        classes, novel = order[:half].sort().values, order[half:].sort().values
    if protocol.shots is None:
        return Draw(torch.isin(labels, classes).nonzero().flatten(), classes, novel)
    drawn, beside, last = [], [], protocol.shots + (protocol.validation_shots or 0)
    for label in classes:
        index = (labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        drawn.append(index[: protocol.shots])
        beside.append(index[protocol.shots : last])
    return Draw(torch.cat(drawn), classes, novel, torch.cat(beside))


def needed(protocols: Iterable[Protocol], labels: Tensor, class_count: int) -> Tensor:
    """Training images that any of some protocols draws: increasing numbers in their split."""
    found = [torch.arange(0)]
    for protocol in protocols:
        for seed in protocol.seeds:
            with suppress(ResiDualError):  # what cannot be drawn is said where it is run
                found.append(draw(protocol, labels, class_count, seed).learned)
    return torch.cat(found).unique()


def most_needed(protocols: Iterable[Protocol], train: int, class_count: int | None) -> int | None:
    """How many images `needed` has at most; None where classes are to be counted and are unknown.

    Draws of one kind and seed hold each other: their images are those of the largest. `train` is
    how many the training split has.
    """
    drawn: dict[tuple[str, int], int] = {}
    for protocol in protocols:
        for seed in protocol.seeds:
            place = protocol.kind, seed
            if protocol.shots is None and protocol.kind == "full":
                return train
            if protocol.shots is None:  # half of the classes, which may be all but one image
                drawn[place] = train
            elif class_count is None:
                return None
            else:
                classes = class_count if protocol.kind == "shots" else -(-class_count // 2)
                shots = protocol.shots + (protocol.validation_shots or 0)
                drawn[place] = max(drawn.get(place, 0), shots * classes)
    return min(train, sum(drawn.values()))


def of_classes(classifier: ZeroShotClassifier, classes: Tensor) -> ZeroShotClassifier:
    """A classifier of some of the classes, their texts as they are."""
    if len(classes) == len(classifier.class_names):
        return classifier
    found = copy(classifier)
    found.class_names = tuple(classifier.class_names[number] for number in classes.tolist())
    found.class_embeddings = classifier.class_embeddings[classes]
    return found
