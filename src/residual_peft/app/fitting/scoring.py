"""What a fit's stores say of it: scores before and after, on test images and on training images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...classifiers.evaluation import Evaluation
from ...classifiers.metrics import multi_label_metrics
from ...classifiers.zero_shot import ZeroShotClassifier
from ...solvers.store import CoordinateStore

CHUNK = 4096  # images at a time


@torch.no_grad()
def scored(
    classifier: ZeroShotClassifier,
    store: CoordinateStore,
    gains: Tensor | None,
    bias: float,
) -> Evaluation:
    """What a classifier says of the images of a store.

    Args:
        classifier: its class embeddings and logit scale.
        store: coordinates and readouts of the images.
        gains: λ; None without the adapter.
        bias: of the logits.
    """
    classifier.check_labels(store.labels)
    logits = torch.cat(
        [part + bias if bias else part for part in _logits(classifier, store, gains)]
    )
    return Evaluation(classifier.class_names, logits, store.labels)


@torch.no_grad()
def training_metrics(
    classifier: ZeroShotClassifier, store: CoordinateStore, gains: Tensor
) -> dict[str, float]:
    """The first of the metrics on the training images: N C numbers are held with several labels."""
    if classifier.multi_label:
        found = scored(classifier, store, gains, classifier.logit_bias)
        return multi_label_metrics(found.logits, found.labels)
    right, start = 0, 0
    for logits in _logits(classifier, store, gains):
        right += int((logits.argmax(-1) == store.labels[start : start + len(logits)]).sum())
        start += len(logits)
    return {"accuracy": right / len(store)}


def _logits(
    classifier: ZeroShotClassifier, store: CoordinateStore, gains: Tensor | None
) -> Iterator[Tensor]:
    """Scaled cosines (n, C) on the CPU, some images at a time."""
    for part in store.parts:
        for rows in torch.arange(len(part)).split(CHUNK):
            readout = part.readout[rows] if gains is None else part.rows(rows).adapted(gains)
            yield classifier.scaled_cosines(readout).cpu()
