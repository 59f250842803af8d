"""What a fit's stores say of it: scores before and after, on test images and on training images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...classifiers.evaluation import Evaluation
from ...classifiers.zero_shot import ZeroShotClassifier
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Outcome
from ...solvers.store import CoordinateStore, Stores

CHUNK = 4096  # images at a time


@torch.no_grad()
def scored_by(
    outcome: Outcome, classifier: ZeroShotClassifier, store: Coordinates | CoordinateStore | Stores
) -> Evaluation:
    """What a method's outcome says of the images of a store, the classifier left as it is."""
    classifier.check_labels(store.labels)
    logits = [
        outcome.logits(classifier, part.rows(rows))
        for part in store.parts
        for rows in torch.arange(len(part)).split(CHUNK)
    ]
    thresholds = None if outcome.head is None else outcome.head.thresholds
    return Evaluation(
        classifier.class_names, torch.cat(logits), store.labels, thresholds=thresholds
    )


@torch.no_grad()
def scored(
    classifier: ZeroShotClassifier,
    store: CoordinateStore,
    gains: Tensor | None,
    bias: float,
) -> Evaluation:
    """What a classifier without a head says of a store; gains are None without the adapter."""
    classifier.check_labels(store.labels)
    logits = torch.cat([part for part, _ in _scored(classifier, store, gains, bias)])
    return Evaluation(classifier.class_names, logits, store.labels)


@torch.no_grad()
def training_metrics(
    classifier: ZeroShotClassifier, store: CoordinateStore, gains: Tensor
) -> dict[str, float]:
    """At least the first of the metrics on the training images (`OneLabel.metrics_in_parts`)."""
    parts = _scored(classifier, store, gains, classifier.logit_bias)
    return classifier.labelling.metrics_in_parts(parts)


def _scored(
    classifier: ZeroShotClassifier, store: CoordinateStore, gains: Tensor | None, bias: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, C) and labels on the CPU, some images at a time."""
    for part in store.parts:
        for rows in torch.arange(len(part)).split(CHUNK):
            readout = part.readout[rows] if gains is None else part.rows(rows).adapted(gains)
            logits = classifier.scaled_cosines(readout).cpu()
            yield (logits + bias if bias else logits), part.labels[rows]
