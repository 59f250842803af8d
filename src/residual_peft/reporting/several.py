"""What a report says of test images that have several labels each, or none."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.labels import MANY_LABELS
from ..data.metrics import Array
from .run_record import RunRecord


@dataclass(frozen=True)
class LabelChange:
    """One label before and after the adapter."""

    name: str  # of the class
    images: int  # that have it
    # average precision without the adapter: how far up these images stand when all are put in the
    # order of their scores
    was: float
    now: float  # the same with it
    found: float  # the share of its images that are given the label
    # the share of the images that are given the label which have it; NaN where none is
    right: float

    @property
    def difference(self) -> float:
        """Of the two average precisions."""
        return self.now - self.was


@dataclass(frozen=True)
class SeveralFindings:
    """What is told of a run whose images have several labels each."""

    was: float  # the first of the metrics without the adapter
    now: float  # with it
    labels: list[LabelChange]  # those that test images have, the most improved first
    measures: list[tuple[str, float, float]]  # name of a metric, before and after
    images: int  # how many there are
    without_labels: int  # images that have none

    @classmethod
    def of(cls, record: RunRecord) -> "SeveralFindings":
        """Those of a record with labels (N, C)."""
        labels = record.labels.numpy()
        before, after = (MANY_LABELS.metrics(x, labels) for x in (record.before, record.after))
        first = MANY_LABELS.metric_names[0]
        rows = [_label(record, labels, number) for number in np.flatnonzero(labels.any(0)).tolist()]
        return cls(
            before[first],
            after[first],
            sorted(rows, key=lambda row: -row.difference),
            [(name, before[name], after[name]) for name in MANY_LABELS.metric_names],
            len(labels),
            int((~labels.any(1)).sum()),
        )

    @property
    def difference(self) -> float:
        """Of the first of the metrics."""
        return self.now - self.was


def _label(record: RunRecord, labels: Array, number: int) -> LabelChange:
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    own, logits = labels[:, number] > 0, record.after.numpy()[:, number]
    given: Any = MANY_LABELS.predicted(record.after)[:, number].numpy()
    return LabelChange(
        record.class_names[number],
        int(own.sum()),
        float(average_precision_score(own, record.before.numpy()[:, number])),
        float(average_precision_score(own, logits)),
        float(recall_score(own, given)),
        float(precision_score(own, given, zero_division=np.nan)),
    )
