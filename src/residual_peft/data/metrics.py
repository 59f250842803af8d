"""Accuracy, top-k accuracy, mean per-class recall and their like: pure functions of arrays.

Metrics take scores (N, C), one row per image and one column per class, and labels (N,); those for
several labels per image take zeros and ones (N, C). Intervals take what was right: counts, or one
True or False per image.
"""

from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import ResiDualError

Array = npt.NDArray[Any]
ArrayLike = npt.ArrayLike | Tensor


def evaluate_module_path() -> str:
    """Where the module for Hugging Face `evaluate` lies: `evaluate.load(evaluate_module_path())`.

    Nothing else here needs that package: it comes with whoever calls it.
    """
    return str(Path(__file__).parent / "metric_modules" / "residual_accuracy")


def accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Share of images whose highest score is that of their label; equal scores go to the first."""
    return top_k_accuracy(scores, labels, 1)


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Share of images whose label is among the `k` highest scores (all of them when C <= k).

    Equal scores are ranked by class index, so that `k=1` is exactly the accuracy of `argmax`.
    """
    if k < 1:
        raise ResiDualError(f"wanted k of at least 1 for a top-k accuracy, got {k}.")
    values, targets = _checked(scores, labels)
    own = np.take_along_axis(values, targets[:, None], axis=1)
    earlier = np.arange(values.shape[1])[None] < targets[:, None]
    rank = ((values > own) | ((values == own) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def per_class_recall(scores: ArrayLike, labels: ArrayLike) -> Array:
    """Share of each class's images that are recognised (C,); NaN for a class with no images."""
    from sklearn.metrics import recall_score

    values, targets = _checked(scores, labels)
    classes = range(values.shape[1])
    return recall_score(
        targets, values.argmax(axis=1), labels=classes, average=None, zero_division=np.nan
    )


def mean_per_class_recall(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean of the recalls of those classes that occur in `labels` (balanced accuracy)."""
    return float(np.nanmean(per_class_recall(scores, labels)))


def mean_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the average precision, for images with several labels.

    Scores are (N, C), labels zeros and ones (N, C); classes that no image has are left out.

    Raises:
        ResiDualError: shapes that differ, scores that are not finite, labels of other numbers, or
            no image with any label.
    """
    values, targets = _checked_multi_hot(scores, labels)
    from sklearn.metrics import average_precision_score

    present = targets.any(axis=0)
    found = average_precision_score(targets[:, present], values[:, present], average="macro")
    return min(float(found), 1.0)  # a sum of shares that rounding may take past it


def multi_label_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How good logits (N, C) are where an image may have several labels, or none: zeros and ones.

    Their bias is in them: a class is named from 0 on, a probability of one half. `micro_f1` is over
    all images and classes at once; `macro_f1` the mean over the classes that occur; `exact_match`
    the share of images with just their labels.

    Raises:
        ResiDualError: as `mean_average_precision`.
    """
    values, real = _checked_multi_hot(scores, labels)
    from sklearn.metrics import f1_score

    named = values >= 0
    # a single column is "binary" to scikit-learn, which has its zeros for a class as well
    classes = range(real.shape[1]) if real.shape[1] > 1 else [1]
    score = partial(f1_score, real, named, labels=classes, zero_division=0)
    return {
        "mean_average_precision": mean_average_precision(values, real),
        "micro_f1": float(score(average="micro")),
        "macro_f1": float(score(average=None)[real.any(axis=0)].mean()),
        "exact_match": float((named == real).all(axis=1).mean()),
    }


def confusion_matrix(scores: ArrayLike, labels: ArrayLike) -> Array:
    """Counts (C, C): row = label, column = prediction."""
    from sklearn.metrics import confusion_matrix as counted

    values, targets = _checked(scores, labels)
    return counted(targets, values.argmax(axis=1), labels=range(values.shape[1]))


def accuracy_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy (E. B. Wilson, JASA 22, 1927), without continuity.

    Unlike ± z √(p (1 − p) / n) it stays within [0, 1], and none or all correct still gives an
    interval of some length.

    Args:
        correct: images that were recognised.
        total: images.
        level: of confidence.

    Raises:
        ResiDualError: no images, more correct than there are, or a level outside (0, 1).

    >>> [round(bound, 3) for bound in accuracy_interval(90, 100)]
    [0.826, 0.945]
    """
    if total < 1 or not 0 <= correct <= total:
        raise ResiDualError(
            f"wanted from 0 to total images correct and at least one image, got {correct} of "
            f"{total}."
        )
    from scipy.stats import binomtest

    _check_level(level)
    low, high = binomtest(correct, total).proportion_ci(level, method="wilson")
    return float(low), float(high)


def difference_interval(
    first: ArrayLike, second: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Interval of accuracy(first) − accuracy(second), from (N,) who was right, on the same images.

    The Wald interval of matched pairs with half an image added to each of the four cells (A.
    Agresti and Y. Min, Statistics in Medicine 24, 2005). Only images where the two disagree count,
    so that it is far shorter than two intervals side by side.

    Raises:
        ResiDualError: no images, other shapes, or a level outside (0, 1).
    """
    one, other = _numpy(first).astype(bool), _numpy(second).astype(bool)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise ResiDualError(
            "wanted right or wrong for the same images twice, (N,) and (N,) with N of at least 1; "
            f"got shapes {tuple(one.shape)} and {tuple(other.shape)}."
        )
    better, worse = (one & ~other).sum() + 0.5, (other & ~one).sum() + 0.5
    total = len(one) + 2
    middle = (better - worse) / total
    error = (better + worse - (better - worse) ** 2 / total) ** 0.5 / total
    _check_level(level)
    half = NormalDist().inv_cdf((1 + level) / 2) * error  # the z of a two-sided interval
    return float(max(middle - half, -1.0)), float(min(middle + half, 1.0))


def classification_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """`accuracy`, `top5_accuracy` and `mean_per_class_recall` of scores (N, C)."""
    return {
        "accuracy": accuracy(scores, labels),
        "top5_accuracy": top_k_accuracy(scores, labels, 5),
        "mean_per_class_recall": mean_per_class_recall(scores, labels),
    }


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ResiDualError(f"wanted a level of confidence between 0 and 1, got {level}.")


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    values, targets = _numpy(scores), _numpy(labels)
    if values.ndim != 2 or targets.ndim != 1 or len(values) != len(targets):
        raise ResiDualError(
            "wanted scores (images, classes) and one label per image, got shapes "
            f"{tuple(values.shape)} and {tuple(targets.shape)}."
        )
    if len(targets) == 0:
        raise ResiDualError("wanted at least one image to compute a metric, got none.")
    _check_finite(values)
    if not np.issubdtype(targets.dtype, np.integer):
        raise ResiDualError(f"wanted whole numbers as labels, got {targets.dtype}.")
    outside = np.flatnonzero((targets < 0) | (targets >= values.shape[1]))
    if len(outside):
        raise ResiDualError(
            f"wanted labels from 0 to {values.shape[1] - 1}, got {int(targets[outside[0]])} for "
            f"image {int(outside[0])}; unlabelled images cannot be scored."
        )
    return values, targets.astype(np.int64)


def _checked_multi_hot(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Scores (N, C), and as bool (N, C) which classes each image has."""
    values, targets = _numpy(scores), _numpy(labels)
    if values.ndim != 2 or values.shape != targets.shape:
        raise ResiDualError(
            "wanted scores and labels (images, classes), a 0 or 1 per class, got shapes "
            f"{tuple(values.shape)} and {tuple(targets.shape)}."
        )
    _check_finite(values)
    real = targets.astype(bool)
    other = np.argwhere(targets != real)
    if len(other):
        row, column = other[0].tolist()
        raise ResiDualError(
            f"wanted labels of zeros and ones, got {targets[row, column]} for class {column} of "
            f"image {row}."
        )
    if not real.any():
        raise ResiDualError("wanted images with labels to measure a precision on, got none.")
    return values, real


def _check_finite(values: Array) -> None:
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ResiDualError(f"wanted finite scores, got NaN or infinity for image {row}.")


def _numpy(value: ArrayLike) -> Array:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        # numpy knows no bfloat16
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(value)
