"""What one draw gives to all methods, and how their answers are measured."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...classifiers.heads.trust import calibration_error
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data.metrics import accuracy, mean_per_class_recall
from ...errors import ResiDualError
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Rows
from ...solvers.store import CoordinateStore
from .descent import Learned
from .encoding import Pair
from .entries import Protocol
from .fits import Fitted, text_logits
from .images import Draw
from .pixels import Images
from .results import packed

CHUNK = 4096  # images that are answered for at a time


@dataclass(frozen=True)
class Given:
    """What one draw gives to all methods: rows to fit, images to test, and the other classes.

    Or beside the test images, their groups and shifted ones.
    """

    rows: Rows
    learned: Learned
    test: "Queries"
    novel: "Queries | None" = None
    of_novel: ZeroShotClassifier | None = None
    subgroups: tuple[str, ...] = ()
    shifted: "dict[str, Queries]" = field(default_factory=dict)

    @classmethod
    def of(cls, pair: Pair, protocol: Protocol, drawn: Draw) -> "Given":
        """What a draw of a protocol comes to; images that nobody has read yet are.

        Raises:
            ResiDualError: a class without images is asked for, and the model knows no texts.
        """
        places = torch.searchsorted(pair.needed, drawn.learned)
        both = within(pair.train.rows(places), drawn.classes)
        train = both.rows(torch.arange(len(drawn.rows)))
        learned = Learned(both, pair.images_of("train", drawn.learned))
        if not len(drawn.novel):
            shifted = {
                name: Queries(pair.store(where), pair.images_of(where))
                for name, where in pair.beside(protocol).items()
            }
            rows = Rows.of(pair.classifier(train), train, means=not pair.tower.has_text)
            test = Queries(pair.test, pair.images_of("test"))
            return cls(rows, learned, test, subgroups=pair.subgroups, shifted=shifted)
        if not pair.tower.has_text:
            raise ResiDualError(
                "wanted a model with a text tower to tell classes without images, got none: leave "
                "the protocol out for it."
            )
        classifier = of_classes(pair.texts, drawn.classes)
        return cls(
            Rows.of(classifier, train),
            learned,
            Queries.within(pair, drawn.classes),
            Queries.within(pair, drawn.novel),
            of_classes(pair.texts, drawn.novel),
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many images to train on, to choose by, where there are any, and to test on."""
        train = len(self.rows.labels)
        validation = len(self.learned.data.labels) - train
        beside = {"validation": validation} if validation else {}
        return {"train": train, **beside, "test": len(self.test)}

    def measured(self, fitted: Fitted) -> dict[str, Any]:
        """The measures of a result that are told by answers."""
        logits, labels = answers(fitted, self.test), self.test.data.labels
        right = logits.argmax(1) == labels
        found: dict[str, Any] = {
            "accuracy": accuracy(logits, labels),
            "mean_per_class_recall": mean_per_class_recall(logits, labels),
            "calibration_error": calibration_error(logits, labels),
            "right": packed(right),
            "shifted": {
                name: accuracy(answers(fitted, part), part.data.labels)
                for name, part in self.shifted.items()
            },
        }
        if self.subgroups:
            found["worst_group"], found["worst_group_accuracy"] = worst(right, self.subgroups)
        if self.novel is None:
            return found
        assert self.of_novel is not None
        adapted = [
            part.readout if fitted.adapted is None else fitted.adapted(part)
            for part in self.novel.encoded(fitted)
        ]
        novel = accuracy(text_logits(self.of_novel, torch.cat(adapted)), self.novel.data.labels)
        both = found["accuracy"] + novel
        mean = 2 * found["accuracy"] * novel / both if both else 0.0
        return found | {"novel_accuracy": novel, "harmonic_mean": mean}


@dataclass(frozen=True)
class Queries:
    """Images that are asked for: their coordinates, and the same images as pictures."""

    data: Coordinates | CoordinateStore
    images: Images

    @classmethod
    def within(cls, pair: Pair, classes: Tensor) -> "Queries":
        """Test images of some classes."""
        rows = torch.isin(pair.test.labels, classes).nonzero().flatten()
        return cls(within(pair.test, classes), pair.images_of("test", rows))

    def __len__(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[tuple[Coordinates, Images]]:
        """Some images at a time, in memory, and as pictures, which nobody needs to read."""
        for places in torch.arange(len(self.data)).split(CHUNK):
            yield self.data.rows(places), self.images.some(places)

    def encoded(self, fitted: Fitted) -> Iterator[Coordinates]:
        """Some at a time, as a fitted method wants them."""
        for part, images in self.chunks():
            yield fitted.encoded(part, images)


def answers(fitted: Fitted, queries: Queries) -> Tensor:
    """Logits of all images (M, C)."""
    return torch.cat([fitted.logits(part).detach().cpu() for part in queries.encoded(fitted)])


def worst(right: Tensor, groups: Sequence[str]) -> tuple[str, float]:
    """The group of images that fares worst, and its accuracy, from who was right, bool (M,)."""
    names, numbers = np.unique(groups, return_inverse=True)
    shares = np.bincount(numbers, weights=right.numpy()) / np.bincount(numbers)
    return str(names[shares.argmin()]), float(shares.min())


def within(data: Coordinates, classes: Tensor) -> Coordinates:
    """The images of some classes (increasing), labelled by their place among them."""
    found = data.rows(torch.isin(data.labels, classes).nonzero().flatten())
    found.labels.copy_(torch.searchsorted(classes, found.labels))
    return found


def of_classes(classifier: ZeroShotClassifier, classes: Tensor) -> ZeroShotClassifier:
    """A classifier of some of the classes, their texts as they are."""
    if len(classes) == len(classifier.class_names):
        return classifier
    found = copy(classifier)
    found.class_names = tuple(classifier.class_names[number] for number in classes.tolist())
    found.class_embeddings = classifier.class_embeddings[classes]
    return found
