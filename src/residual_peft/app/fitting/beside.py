"""What a fit leaves beside what it fitted: known images, sums, rows, scores of held-out images."""

from dataclasses import replace

import torch
from torch import Tensor

from ...classifiers.files import ROWS, STATISTICS
from ...classifiers.heads import RidgeSums
from ...classifiers.heads.choosing import some_rows
from ...classifiers.heads.images import duplicate_groups
from ...classifiers.kept import KeptStatistics
from ...classifiers.none_of_these import FEW, known_images
from ...classifiers.trained_head import embedding_features
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData
from ...errors import ResiDualError, counted
from ...solvers.large import statistics_of
from ...solvers.methods import Outcome
from ...solvers.store import CoordinateStore, Stores
from .checks import PER_CLASS
from .scores import scored_by
from .task import Task

KNOWN = 20_000  # images that tell how far others may lie
MOST_BYTES = 2**30
"""Of the rows that jackknife+ keeps, on disk and about as much again in memory."""


def left_beside(
    task: Task,
    chosen: Outcome,
    classifier: ZeroShotClassifier,
    stores: Stores,
    groups: Tensor | None,
) -> tuple[str, ...]:
    """Put beside a class head what tells strangers, sums and rows; what to say of these."""
    # a class head tells images that are none of its classes by those that it was fitted on
    if (head := classifier.labelling.where_one(classifier.head)) is not None:
        index = some_rows(stores.labels, head.class_count, KNOWN)
        index = torch.arange(len(stores.labels)) if index is None else index
        readout = stores.readout[index]
        few = head.features == "coordinates" and len(index) < FEW
        known = known_images(
            embedding_features(readout),
            stores.labels[index],
            head.class_count,
            coordinates=stores.rows(index).coordinates if few else None,
            groups=duplicate_groups(readout) if groups is None else groups[index],
        )
        classifier.set_head(replace(head, known=known))
    notes = _keep_statistics(task, chosen, classifier, stores)
    if task.recipe.sets == "jackknife+":
        notes += _keep_rows(chosen, classifier, len(stores.labels))
    return notes


def _keep_statistics(
    task: Task, chosen: Outcome, classifier: ZeroShotClassifier, stores: Stores
) -> tuple[str, ...]:
    """Put the sums of the head's images beside it where that was asked for; what to say of them."""
    if not task.recipe.keep_statistics:
        return ()
    settings, head = chosen.settings, classifier.head
    if settings is None or head is None:
        return (
            f"no statistics were kept: those are of a ridge, and {chosen.method} did better "
            "here. Fit with method='ridge' for a head that can be updated.",
        )
    features, weights = head.features, settings.class_weights
    sums = statistics_of(
        stores,
        head.class_count,
        features=features,
        columns=chosen.columns,
        class_weights=None if bool((weights == 1).all()) else weights,
        per_class=task.recipe.keep_statistics == PER_CLASS,
    )
    width = len(head.head.mean)
    columns = torch.arange(width) if chosen.columns is None else chosen.columns
    classifier.statistics = KeptStatistics.of(classifier, RidgeSums(sums, settings), columns)
    size = sum(tensor.numel() for tensor in sums.state().values()) * 8 / 1e6
    return (
        f"statistics of the head's images lie in {STATISTICS} ({size:,.1f} MB): class means and a "
        "covariance, of a class with one image that image's coordinates. They are never pushed.",
    )


def _keep_rows(chosen: Outcome, classifier: ZeroShotClassifier, images: int) -> tuple[str, ...]:
    """Keep the ridge without each part of its images; what to say of it."""
    if chosen.head is not None and chosen.head.low_rank:
        return ("no rows were kept for jackknife+: they are of the head before its low rank.",)
    if chosen.head is None or chosen.without is None:
        return (
            "no rows were kept for jackknife+: those are of a ridge on images in memory, and here "
            f"{chosen.method} was fitted otherwise: sets are by the jackknife. Fit with "
            "method='ridge', or fewer components per unit.",
        )
    width = len(chosen.head.head.mean) if chosen.columns is None else len(chosen.columns)
    size = images * (4 * width + 16 * chosen.head.class_count)
    if size > MOST_BYTES:
        return (
            f"no rows were kept for jackknife+: {size / 1e9:,.1f} GB are more than "
            f"{MOST_BYTES / 1e9:,.1f}. Fewer components per unit make them fewer.",
        )
    try:
        rows = chosen.without()
    except ResiDualError as error:  # nothing could be left out
        return (f"no rows were kept for jackknife+: {error}",)
    classifier.without = rows
    size = sum(tensor.numel() * tensor.element_size() for tensor in rows.state().values())
    return (
        f"what the head reads of each of its {len(rows.scores):,} images, for jackknife+, lies in "
        f"{ROWS} ({size / 1e6:,.1f} MB): no pixels, but data as the images are. It is never "
        "pushed.",
    )


def calibrated(
    classifier: ZeroShotClassifier,
    chosen: Outcome,
    store: CoordinateStore,
    fitted_on: Stores,
    images: ImageData,
) -> tuple[str, ...]:
    """Calibrate by the store of the validation images; what to say of it.

    Images that were learned from are left out, by the bytes of their files and, as one that was
    saved anew has others, by what the model reads of them.
    """
    known = set(images.digests.get("train", ()))
    digests = images.digests.get("validation", (None,) * len(store.labels))
    new = torch.tensor([digest not in known for digest in digests])
    copies = duplicate_groups(torch.cat([fitted_on.readout, store.readout]))
    new &= ~torch.isin(copies[len(fitted_on) :], copies[: len(fitted_on)])
    if not new.any():
        return ("all validation images are training images, too: none of them is held out.",)
    scored = scored_by(chosen, classifier, store)
    classifier.calibrate_by(scored.logits[new], scored.labels[new])
    count, known_too = int(new.sum()), int((~new).sum())
    were = "was" if known_too == 1 else "were"
    left = f"; {known_too:,} that the fit learned from, too, {were} left out" if known_too else ""
    grouped = images.split.group_column is not None
    left += "; of new groups nothing is promised, as images of one are alike" if grouped else ""
    return (
        f"{counted(count, 'validation image')} that nothing was fitted to calibrate the sets of "
        f"classes: enough for a coverage of up to {count / (count + 1):.3f}{left}.",
    )
