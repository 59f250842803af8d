"""What one draw gives to all methods, and how their answers are measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...classifiers.heads.trust import reliability
from ...data.metrics import accuracy, mean_per_class_recall
from ...errors import ResiDualError
from ...solvers.coordinates import Coordinates
from ...solvers.store import CoordinateStore
from .encoding import Pair
from .entries import Protocol
from .fits import Fitted, text_logits
from .protocols import Draw, of_classes
from .results import packed

CHUNK = 4096  # images that are answered for at a time


@dataclass(frozen=True)
class Given:
    """What one draw gives to all methods: rows to fit, images to test, and the other classes.

    Or beside the test images, their groups and shifted ones.
    """

    rows: Any
    test: Coordinates
    novel: Coordinates | None = None
    of_novel: Any = None
    subgroups: tuple[str, ...] = ()
    shifted: dict[str, CoordinateStore] = field(default_factory=dict)

    @classmethod
    def of(cls, pair: Pair, protocol: Protocol, drawn: Draw) -> "Given":
        """What a draw of a protocol comes to; images that nobody has read yet are.

        Raises:
            ResiDualError: a class without images is asked for, and the model knows no texts.
        """
        train, test = within(pair.train.rows(drawn.rows), drawn.classes), pair.test
        if not len(drawn.novel):
            shifted = {name: pair.store(where) for name, where in pair.beside(protocol).items()}
            rows = pair.rows(pair.classifier(train), train)
            return cls(rows, test, subgroups=pair.subgroups, shifted=shifted)
        if not pair.tower.has_text:
            raise ResiDualError(
                "wanted a model with a text tower to tell classes without images, got none: leave "
                "the protocol out for it."
            )
        classifier = of_classes(pair.texts, drawn.classes)
        return cls(
            pair.rows(classifier, train),
            within(test, drawn.classes),
            within(test, drawn.novel),
            of_classes(pair.texts, drawn.novel),
        )

    def measured(self, fitted: Fitted) -> dict[str, Any]:
        """The measures of a result that are told by answers."""
        logits, labels = answers(fitted, self.test), self.test.labels
        right = logits.argmax(1) == labels
        found: dict[str, Any] = {
            "accuracy": accuracy(logits, labels),
            "mean_per_class_recall": mean_per_class_recall(logits, labels),
            "calibration_error": reliability(logits, labels).error,
            "right": packed(right),
            "shifted": {
                name: accuracy(answers(fitted, part), part.labels)
                for name, part in self.shifted.items()
            },
        }
        if self.subgroups:
            found["worst_group"], found["worst_group_accuracy"] = worst(right, self.subgroups)
        if self.novel is None:
            return found
        adapted = self.novel.readout if fitted.adapted is None else fitted.adapted(self.novel)
        novel = accuracy(text_logits(self.of_novel, adapted), self.novel.labels)
        both = found["accuracy"] + novel
        mean = 2 * found["accuracy"] * novel / both if both else 0.0
        return found | {"novel_accuracy": novel, "harmonic_mean": mean}


def answers(fitted: Fitted, data: Coordinates | CoordinateStore) -> Tensor:
    """Logits of all images (M, C)."""
    return torch.cat([fitted.logits(part).detach().cpu() for part in chunks(data)])


def worst(right: Tensor, groups: Sequence[str]) -> tuple[str, float]:
    """The group of images that fares worst, and its accuracy.

    Args:
        right: bool (M,).
        groups: of each image.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    shares = np.bincount(numbers, weights=right.numpy()) / np.bincount(numbers)
    return str(names[shares.argmin()]), float(shares.min())


def within(data: Coordinates, classes: Tensor) -> Coordinates:
    """The images of some classes (increasing), labelled by their place among them."""
    found = data.rows(torch.isin(data.labels, classes).nonzero().flatten())
    found.labels.copy_(torch.searchsorted(classes, found.labels))
    return found


def chunks(data: Coordinates | CoordinateStore) -> Iterator[Coordinates]:
    """Some images at a time, in memory."""
    for start in range(0, len(data), CHUNK):
        yield data.rows(torch.arange(start, min(start + CHUNK, len(data))))
