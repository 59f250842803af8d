"""A run record -> what its report says of the test images: counts, intervals, confusions."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..classifiers.heads.trust import reliability
from ..data.metrics import (
    Array,
    accuracy_interval,
    classification_metrics,
    difference_interval,
)
from .run_record import RunRecord

LEVEL = 0.95


@dataclass(frozen=True)
class Accuracy:
    """How many of some images were recognised, with Wilson's interval."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The share of them."""
        return self.correct / self.total

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Its bounds at `LEVEL`."""
        return accuracy_interval(self.correct, self.total, LEVEL)


@dataclass(frozen=True)
class Change:
    """The same images before and after, with Agresti and Min's interval of the difference."""

    before: Array  # True for each image that was recognised without the adapter, (n,)
    after: Array  # True for each that is recognised with it
    index: int | None = None  # the class of all of them; None for all classes
    name: str = ""  # its name

    @property
    def images(self) -> int:
        """How many images."""
        return len(self.before)

    @property
    def was(self) -> Accuracy:
        """Without the adapter."""
        return Accuracy(int(self.before.sum()), self.images)

    @property
    def now(self) -> Accuracy:
        """With it."""
        return Accuracy(int(self.after.sum()), self.images)

    @property
    def fixed(self) -> int:
        """Images that were wrong and are right."""
        return int((self.after & ~self.before).sum())

    @property
    def broken(self) -> int:
        """Images that were right and are wrong."""
        return int((self.before & ~self.after).sum())

    @property
    def right(self) -> int:
        """Images that are right both times."""
        return int((self.before & self.after).sum())

    @property
    def wrong(self) -> int:
        """Images that are wrong both times."""
        return self.images - self.right - self.fixed - self.broken

    @property
    def difference(self) -> float:
        """Of the two accuracies."""
        return (self.fixed - self.broken) / self.images

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Bounds of the difference at `LEVEL`."""
        return difference_interval(self.after, self.before, LEVEL)

    @property
    def noise(self) -> bool:
        """Whether the interval holds no difference at all, too."""
        return self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another: how many, before and after."""

    label: str
    taken_for: str
    before: int
    after: int


@dataclass(frozen=True)
class Shown:
    """A test image that changed side, with the label's score before and after."""

    row: int  # which test image
    image: bytes  # JPEG or PNG bytes
    label: str  # its class
    before: str  # what it was taken for
    after: str  # what it is taken for
    before_score: float  # the probability that went with it
    after_score: float  # likewise
    fixed: bool  # whether it is right now


class Findings:
    """What N test images say of an adapter.

    Attributes:
        change: of all images.
        classes: one `Change` per class that has images, the most improved first.
        without_images: names of the classes that have none.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        labels = record.labels.numpy()
        self.predicted = [logits.numpy().argmax(axis=1) for logits in (record.before, record.after)]
        was, now = (found == labels for found in self.predicted)
        self.change = Change(was, now)
        names = record.class_names
        rows = [np.flatnonzero(labels == index) for index in range(len(names))]
        self.without_images = [names[i] for i, found in enumerate(rows) if not len(found)]
        classes = [
            Change(was[found], now[found], index, names[index])
            for index, found in enumerate(rows)
            if len(found)
        ]
        self.classes = sorted(classes, key=lambda c: (-c.difference, -c.now.value, c.index))
        # by pair of label and prediction: few occur, and (C, C) may take gigabytes
        self._before, self._after = (
            Counter(zip(labels.tolist(), found.tolist(), strict=True)) for found in self.predicted
        )

    @property
    def worse(self) -> list[Change]:
        """Classes of which fewer images are recognised than before, the worst first."""
        return [change for change in reversed(self.classes) if change.difference < 0]

    @cached_property
    def measures(self) -> list[tuple[str, float, float, bool]]:
        """(name, before, after, whether more is better) of some measures beside the accuracy."""
        labels, sides = self.record.labels, (self.record.before, self.record.after)
        scores = [classification_metrics(logits, labels) for logits in sides]
        told = {"mean over the classes of their recall": "mean_per_class_recall"}
        if len(self.record.class_names) > 5:
            told = {"label among the five highest scores": "top5_accuracy"} | told
        rows = [(name, scores[0][key], scores[1][key], True) for name, key in told.items()]
        before, after = (reliability(logits, labels).error for logits in sides)
        return [*rows, ("calibration error of the scores", before, after, False)]

    def confusions(self, count: int = 10) -> list[Confusion]:
        """Pairs of classes that are mistaken most often now."""
        return self._pairs(self._after, count)

    def resolved(self, count: int = 10) -> list[Confusion]:
        """Pairs of classes that are mistaken less often than before, the largest change first."""
        return self._pairs(self._before - self._after, count)

    def _pairs(self, counts: Counter[tuple[int, int]], count: int) -> list[Confusion]:
        names, before, after = self.record.class_names, self._before, self._after
        mistaken = [pair for pair, found in counts.items() if pair[0] != pair[1] and found > 0]
        # the largest first; of equal ones that which was more before, then by class
        mistaken.sort(key=lambda pair: (-counts[pair], -before[pair], pair))
        return [
            Confusion(names[pair[0]], names[pair[1]], before[pair], after[pair])
            for pair in mistaken[:count]
        ]

    @cached_property
    def shown(self) -> list[Shown]:
        """The examples of the record."""
        record = self.record
        names = record.class_names
        found = []
        for example in record.examples:
            row, label = example.row, int(record.labels[example.row])
            before, after = (int(side[row]) for side in self.predicted)
            scores = [x[row].double().softmax(0) for x in (record.before, record.after)]
            found.append(
                Shown(
                    row=row,
                    image=example.image,
                    label=names[label],
                    before=names[before],
                    after=names[after],
                    before_score=float(scores[0][before]),
                    after_score=float(scores[1][after]),
                    fixed=after == label,
                )
            )
        return found
