"""From an adapter on disk to its scores, and tables of what is taken for what."""

import os
from typing import Any

from ...classifiers.evaluation import evaluate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data.labels import ONE_LABEL, check_same
from ...data.skipped import write_listing
from ...hub.files import PathLike
from ..listing import MISTAKE_HEADERS, mistakes_of, write_noted
from .measuring import Measuring, choose_images

_FOR_ONE = "tables of what is taken for what are for one; leave them out."


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
