"""Scores of an adapter on disk, with tables of what is taken for what; of a fit by its stores."""

import os
from typing import Any

import torch
from torch import Tensor

from ...classifiers.evaluation import Evaluation, evaluate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data.labels import ONE_LABEL, check_same
from ...data.skipped import write_listing
from ...hub.files import PathLike
from ...solvers.coordinates import Coordinates, in_chunks
from ...solvers.methods import Outcome
from ...solvers.store import CoordinateStore, Stores
from ..listing import MISTAKE_HEADERS, mistakes_of, write_noted
from .measuring import Measuring, choose_images

CHUNK = 4096  # images at a time
_FOR_ONE = "tables of what is taken for what are for one; leave them out"


def evaluate_adapter(
    adapter: str | os.PathLike[str],
    data: Any,
    *,
    confusion: PathLike | None = None,
    mistakes: PathLike | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy, top-5 accuracy and mean per-class recall of a saved adapter.

    With several labels per image those of `multi_label_metrics`. Which images are measured on, see
    `choose_images`; with `images` (their number), `split`, `data` and how many were left out the
    result says it, and with `accuracy_interval` how far the accuracy can be trusted (Wilson, 95 %).
    `classes` has each class's images, the share of them that is told, and its interval.

    Args:
        adapter: its directory or Hub id.
        data: what `load_data` takes, with some or all of the adapter's classes.
        confusion: a CSV file for counts, a row per class and a column for what its images were
            taken for.
        mistakes: a CSV file for the images that are taken for another class, by their files' names,
            those first whose own class looked the least likely.
        options: those of `Measuring`: which images, and how they are read.

    Raises:
        ResiDualError: bad data, a class that the adapter does not know, splits that are not those
            of its fit, no image that it was not fitted on, an adapter that is not there, or a table
            that was asked for of several labels per image.
    """
    asked = Measuring(**options)
    classifier = ZeroShotClassifier.from_pretrained(adapter, device=asked.device)
    if confusion is not None or mistakes is not None:
        check_same(ONE_LABEL, classifier.labelling, _FOR_ONE)
    chosen = choose_images(classifier, data, **options)
    found = evaluate(
        classifier, chosen.images, name=chosen.images.name, progress=True, **asked.reading
    )
    if confusion is not None:
        # the first column has the class of each row, the first line what it was taken for
        names, counts = found.class_names, found.confusion.tolist()
        rows = ([name, *row] for name, row in zip(names, counts, strict=True))
        write_listing(confusion, ("class", *names), rows)
    if mistakes is not None:
        noted = mistakes_of(found, chosen.images.dataset, chosen.images.name) or []
        write_noted(mistakes, noted, found.class_names, MISTAKE_HEADERS)
    chosen = chosen.without(found.skipped, asked.max_bad)
    scores: dict[str, Any] = dict(found.metrics)
    if (interval := found.interval) is not None:
        scores["accuracy_interval"] = list(interval)
    return scores | chosen.as_dict() | {"classes": found.per_class}


@torch.no_grad()
def scored_by(
    outcome: Outcome, classifier: ZeroShotClassifier, store: Coordinates | CoordinateStore | Stores
) -> Evaluation:
    """What a method's outcome says of the images of a store, the classifier left as it is."""
    classifier.check_labels(store.labels)
    logits = [outcome.logits(classifier, some) for some in in_chunks(store.parts, CHUNK)]
    thresholds = None if outcome.head is None else outcome.head.thresholds
    return Evaluation(
        classifier.class_names, torch.cat(logits), store.labels, thresholds=thresholds
    )


@torch.no_grad()
def scored(
    classifier: ZeroShotClassifier, store: CoordinateStore, gains: Tensor | None
) -> Evaluation:
    """What a classifier without a head says of a store; gains are None without the adapter."""
    classifier.check_labels(store.labels)
    logits = [
        classifier.logits(some.readout if gains is None else some.adapted(gains)).cpu()
        for some in in_chunks(store.parts, CHUNK)
    ]
    return Evaluation(classifier.class_names, torch.cat(logits), store.labels)
