"""What a fit says of training images that it did not see: how far to trust it and its labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from ..classifiers.evaluation import Evaluation
from ..classifiers.heads.conformal import PredictionSets, scores_of
from ..classifiers.heads.images import duplicate_groups
from ..classifiers.heads.learning_curve import FEWEST_IMAGES, learning_curve
from ..classifiers.heads.left_out import LeftOut
from ..classifiers.heads.ridge import RidgeFit, fit_ridge
from ..classifiers.heads.trust import calibration_error, suspicious_labels
from ..classifiers.trained_head import Features
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import ImageData
from ..data.checking import files_of, short_name
from ..errors import ResiDualError
from ..reporting.run_record import TrustRecord
from ..solvers.coordinates import Coordinates, in_chunks
from ..solvers.methods import Outcome, Rows
from ..solvers.store import CoordinateStore
from .listing import Noted

COVERAGE = 0.9
"""Of the sets of classes that a report speaks of."""
AT_MOST = 2000
"""Training images up to which a ridge by itself is asked: beyond, it takes as long as the fit."""
_PARTS = ("train", "validation")  # whose images a fit has seen, in this order


class Trusted(NamedTuple):
    """What left-out predictions tell."""

    record: TrustRecord | None = None  # the numbers; None where they tell nothing
    # training and validation images whose label looks wrong, the surest first
    suspicious: tuple[Noted, ...] = ()


def contradicting(rows: Rows, images: ImageData, at_most: int = 5) -> str:
    """Pairs of equal images of a fit whose labels differ, by name; empty where there are none.

    Rows are of the training images first, then of validation images.
    """
    first, labels = duplicate_groups(rows.data.readout), rows.labels.reshape(len(rows.labels), -1)
    pairs = ((labels != labels[first]).any(1)).nonzero().flatten()
    named = []
    for row in pairs[:at_most].tolist():
        both = [_place(images, place) for place in (int(first[row]), row)]
        files = [files_of(dataset, [place], title)[0] for dataset, place, title in both]
        named.append(" and ".join(f"'{short_name(file)}'" for file in files))
    return "; ".join([*named, "..."] if len(pairs) > at_most else named)


def sets_of(
    classifier: ZeroShotClassifier, test: Evaluation, store: Coordinates | CoordinateStore | None
) -> dict[str, Any]:
    """Sets of classes of the test images at `COVERAGE`, as `TrustRecord` has them, if any."""
    try:
        sets = classifier.sets(COVERAGE)
    except ResiDualError:  # several labels per image, too few images, or none left out
        return {}
    if isinstance(sets, PredictionSets):
        inside = sets.sets(test.logits)
    else:
        assert store is not None
        found = []
        for part in in_chunks(store.parts, AT_MOST):
            asked = classifier.asked_of(part.readout, part.readout, part.coordinates)
            found.append(sets.sets(asked[1], asked[0]))
        inside = torch.cat(found)
    right = inside.gather(1, test.labels.cpu()[:, None]).double()
    return {
        "coverage": COVERAGE,
        "covered": float(right.mean()),
        "set_size": float(inside.sum(1).double().mean()),
        "sets_by": sets.by,
        "sets_from": sets.images,
        "sets_grouped": sets.grouped,
    }


def trust_of(
    rows: Rows, outcome: Outcome, images: ImageData, sets: Mapping[str, Any], *, means: bool = False
) -> Trusted:
    """How far to trust a fit; nothing where no image was left out, or images have several labels.

    Rows are of the training images first, then of validation images. With `means` classes are means
    of these images, so that fits on fewer would need others. `sets` are `sets_of` the test images.
    """
    left = outcome.left_out
    if left.how == "none" or scores_of(left) is None:
        return Trusted()
    known = left.known
    before = calibration_error(rows.zero_shot[known], rows.labels[known])
    after = calibration_error(left.logits[known], left.labels[known])
    ridge = _ridge(rows, rows.features("coordinates"))
    suspicious, count = _suspicious(left if ridge is None else ridge.left_out, images)
    more, points = None, None
    if not means and outcome.head is not None:
        more, points = _more(rows, outcome.head.features, outcome.columns, ridge)
    record = TrustRecord(
        images=int(known.sum()),
        accuracy=left.accuracy,
        calibration_before=before,
        calibration_after=after,
        wrong_labels=count,
        **sets,
        more_images=more,
        more_points=points,
    )
    return Trusted(record, suspicious)


def _ridge(rows: Rows, values: Tensor) -> RidgeFit | None:
    """A ridge on what is read of the images (N, K).

    For the questions of which it knows more than other methods: see `_suspicious`. None where there
    are more images than it takes in seconds.
    """
    if len(rows.labels) > AT_MOST:
        return None
    return fit_ridge(values, rows.labels, rows.class_count, **rows.options)


def _suspicious(left: LeftOut, images: ImageData) -> tuple[tuple[Noted, ...], int | None]:
    """Images whose label looks wrong, and how many; None where that cannot be told.

    By the ridge's exact leave-one-out where there is one, whatever method was chosen: of 12 labels
    swapped among 360 of handwriting it finds 10 and no others, logistic regression across folds 1.
    """
    try:
        found = suspicious_labels(left)
    except ResiDualError:  # too few images to tell
        return (), None
    noted = []
    for row in found.rows():
        dataset, place, title = _place(images, row)
        (file,) = files_of(dataset, [place], title)
        label, likely = int(left.labels[row]), int(found.likely[row])
        noted.append(Noted(dataset, place, file, label, likely, float(found.wrong[row])))
    return tuple(noted), len(noted)


def _place(images: ImageData, row: int) -> tuple[Dataset, int, str]:
    """Split, row in it and title of one of the images of a fit."""
    for split in (part for part in _PARTS if part in images.splits):
        if row < len(images[split]):
            return images[split], row, f"the {split} split"
        row -= len(images[split])
    raise IndexError(row)


def _more(
    rows: Rows, features: Features, columns: Tensor | None, ridge: RidgeFit | None
) -> tuple[int | None, float | None]:
    """About half as many images more, and the points of accuracy that they would add.

    By ridges on what the method's head reads, of which a fit takes a tenth of a second, whichever
    the method: `features`, and which columns of these (None for all). `ridge` is that of all
    coordinates and images.
    """
    if ridge is None:
        return None, None
    values = rows.features(features)
    some = columns is not None and len(columns) < values.shape[1]
    values = values[:, columns] if some else values
    own = _ridge(rows, values) if some or features == "embedding" else ridge
    if own is None or len(rows.labels) < FEWEST_IMAGES or rows.groups is not None:
        return None, None
    left = own.left_out
    if left.how == "none":
        return None, None

    def accuracy_of(inside: Tensor, outside: Tensor) -> float:
        fit = fit_ridge(
            values[inside],
            rows.labels[inside],
            rows.class_count,
            zero_shot=rows.zero_shot[inside],
            class_weights=rows.class_weights,
        )
        guesses = fit.logits(values[outside], rows.zero_shot[outside]).argmax(1)
        return float((guesses == rows.labels[outside]).double().mean())

    curve = learning_curve(accuracy_of, left.accuracy, left.labels, rows.class_count)
    more = int(float(f"{len(rows.labels) / 2:.0e}"))  # to one digit
    return more, curve.gain(more)
