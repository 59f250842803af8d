"""What logits say of images, and which labels suit them: one label per image, or several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResiDualError


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    With several labels per image, each class's probability is a sigmoid of its own, and `label` is
    the most likely class whether or not it is among the labels.
    """

    label: str
    index: int
    score: float  # the label's probability
    probabilities: tuple[float, ...]  # of every class, in the order of the class names
    labels: tuple[str, ...]  # several: those of probability >= 0.5, maybe none; one: (label,)


def predictions_of(
    logits: Tensor, class_names: Sequence[str], multi_label: bool = False
) -> list[Prediction]:
    """One prediction per row of logits (N, C).

    Args:
        logits: (N, C), their bias included.
        class_names: C names.
        multi_label: whether an image may have several labels, or none.
    """
    predictions = []
    probabilities = logits.sigmoid() if multi_label else logits.softmax(-1)
    for row, scores in zip(logits, probabilities, strict=True):
        # sigmoids of high logits are all 1: the logits tell which is highest
        index = int((row if multi_label else scores).argmax())
        named = (row >= 0).nonzero().flatten().tolist() if multi_label else [index]
        predictions.append(
            Prediction(
                class_names[index],
                index,
                float(scores[index]),
                tuple(scores.tolist()),
                tuple(class_names[i] for i in named),
            )
        )
    return predictions


def check_class_numbers(labels: Tensor, classes: int) -> None:
    """Raise a ResiDualError unless labels (B,) are numbers of classes."""
    if labels.ndim != 1:
        raise ResiDualError(
            f"wanted one class number per image, got labels of shape {tuple(labels.shape)}; "
            "several labels per image need a classifier with multi_label=True, and "
            "Objective(loss='sigmoid') to fit it."
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ResiDualError(
            f"wanted labels from 0 to {classes - 1} ({classes} classes), got {int(labels[row])} "
            f"for image {row} of the batch."
        )


def check_multi_hot(labels: Tensor, classes: int) -> None:
    """Raise a ResiDualError unless labels are (B, C) zeros and ones, of any dtype."""
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise ResiDualError(
            f"wanted labels of shape (N, {classes}), a 0 or 1 per class, for several labels per "
            f"image (loss='sigmoid'), got {tuple(labels.shape)}; load_data(...) and batches(...) "
            "make them of a column of lists."
        )
    other = (labels != 0) & (labels != 1)
    if other.any():
        row, column = other.nonzero()[0].tolist()
        raise ResiDualError(
            f"wanted labels of zeros and ones, a column per class, got "
            f"{labels[row, column].item()} for class {column} of image {row} of the batch."
        )


def best_bias(logits: Tensor, labels: Tensor, limit: float, weights: Tensor | None = None) -> float:
    """The one number that, added to all logits, makes their binary cross-entropy least.

    By bisection: the loss is convex in it.

    Args:
        logits: (N, C), without a bias.
        labels: zeros and ones (N, C).
        limit: what it stays below in size.
        weights: of each class's positives, (C,).
    """
    targets = labels.to(logits)
    weights = torch.ones_like(logits[0]) if weights is None else weights.to(logits)
    low, high = -limit, limit
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = (logits + middle).sigmoid()
        slope = (1 - targets) * probabilities - weights * targets * (1 - probabilities)
        low, high = (middle, high) if float(slope.double().sum()) < 0 else (low, middle)
    return (low + high) / 2
