"""A run record -> what its report says of the test images: counts, intervals, confusions."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..classifiers.heads.trust import calibration_error
from ..data.labels import MANY_LABELS
from ..data.metrics import Array, accuracy_interval, classification_metrics, difference_interval
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


class Change:
    """The same images before and after, with Agresti and Min's interval of the difference.

    Args:
        before: True for each image that was recognised without the adapter, (n,).
        after: True for each that is recognised with it.
        index: the class of all of them; None for all classes.
        name: its name.
    """

    def __init__(
        self, before: Array, after: Array, index: int | None = None, name: str = ""
    ) -> None:
        self.before, self.after, self.index, self.name = before, after, index, name
        self.images = len(before)
        self.was = Accuracy(int(before.sum()), self.images)
        self.now = Accuracy(int(after.sum()), self.images)
        self.fixed = int((after & ~before).sum())  # images that were wrong and are right
        self.broken = int((before & ~after).sum())  # that were right and are wrong
        self.right = int((before & after).sum())  # that are right both times
        self.wrong = self.images - self.right - self.fixed - self.broken  # wrong both times
        self.difference = (self.fixed - self.broken) / self.images  # of the two accuracies

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
        before, after = (calibration_error(logits, labels) for logits in sides)
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


@dataclass(frozen=True)
class LabelChange:
    """One label before and after the adapter."""

    name: str  # of the class
    images: int  # that have it
    # average precision without the adapter: how far up these images stand when all are put in the
    # order of their scores
    was: float
    now: float  # the same with it
    recall: float  # the share of its images that are given the label
    # the share of the images that are given the label which have it; NaN where none is
    precision: float

    @property
    def difference(self) -> float:
        """Of the two average precisions."""
        return self.now - self.was


@dataclass(frozen=True)
class SeveralFindings:
    """What N test images with several labels each say of an adapter."""

    was: float  # the first of the metrics without the adapter
    now: float  # the same with it
    labels: list[LabelChange]  # those that test images have, the most improved first
    measures: list[tuple[str, float, float]]  # name of a metric, before and after
    images: int
    without_labels: int  # images that have none


def several_findings(record: RunRecord) -> SeveralFindings:
    """What is told of a run whose images have several labels each: labels (N, C)."""
    labels = record.labels.numpy()
    before, after = (MANY_LABELS.metrics(x, labels) for x in (record.before, record.after))
    names = MANY_LABELS.metric_names
    rows = [_label(record, labels, number) for number in np.flatnonzero(labels.any(0)).tolist()]
    return SeveralFindings(
        was=before[names[0]],
        now=after[names[0]],
        labels=sorted(rows, key=lambda row: -row.difference),
        measures=[(name, before[name], after[name]) for name in names],
        images=len(labels),
        without_labels=int((~labels.any(1)).sum()),
    )


def _label(record: RunRecord, labels: Array, number: int) -> LabelChange:
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    own, logits = labels[:, number] > 0, record.after.numpy()[:, number]
    given: Any = MANY_LABELS.predicted(record.after)[:, number].numpy()
    return LabelChange(
        name=record.class_names[number],
        images=int(own.sum()),
        was=float(average_precision_score(own, record.before.numpy()[:, number])),
        now=float(average_precision_score(own, logits)),
        recall=float(recall_score(own, given)),
        precision=float(precision_score(own, given, zero_division=np.nan)),
    )
