"""Several labels per image, or none: zeros and ones (N, C), a sigmoid per class, one bias."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from ..metrics import mean_average_precision, multi_label_metrics
from ..stratification import Labels, Rows, iterative_folds, iterative_split
from .heads import HeadsOfManyLabels


class ManyLabels(HeadsOfManyLabels):
    """Each class is on an image or not. Attributes and arguments are those of `OneLabel`."""

    multi_label = True
    words = "several labels"
    most: int | None = None
    loss_name: Literal["softmax", "sigmoid"] = "sigmoid"
    parameters: tuple[str, ...] = ("logit_bias",)
    fewest_classes = 1
    metric_names: tuple[str, ...] = (
        "mean_average_precision",
        "micro_f1",
        "macro_f1",
        "exact_match",
    )
    metric_words = "mean average precision"
    chance_words = ("by chance", "chance")
    answer_words = "a probability for each of"
    threshold: float | None = 0.5
    unmoved_words = (
        "An image may have several labels here, and each class has a probability of its own: what "
        "moved the image from one class to another is not told."
    )
    differing_words = ""

    def check(self, labels: Tensor, classes: int) -> None:
        """Labels are (N, C) zeros and ones, of any dtype."""
        if labels.ndim != 2 or labels.shape[1] != classes:
            raise ResiDualError(
                f"wanted labels of shape (N, {classes}), a 0 or 1 per class, for several labels "
                f"per image (loss='sigmoid'), got {tuple(labels.shape)}; load_data(...) and "
                "batches(...) make them of a column of lists."
            )
        other = (labels != 0) & (labels != 1)
        if other.any():
            row, column = other.nonzero()[0].tolist()
            raise ResiDualError(
                f"wanted labels of zeros and ones, a column per class, got "
                f"{labels[row, column].item()} for class {column} of image {row} of the batch."
            )

    def check_smoothing(self, smoothing: float, name: str) -> None:
        """There is none."""
        if smoothing:
            raise ResiDualError(
                f"{name} is for one label per image (loss='softmax') only: leave it at 0."
            )

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        bias: Tensor | float = 0.0,
        *,
        smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(
            logits + bias, labels.to(logits), pos_weight=weights, reduction=reduction
        )

    def normalizer(self, labels: Tensor, weights: Tensor | None, classes: int) -> float:
        """Images times classes."""
        return float(len(labels) * classes)

    def best_bias(
        self, logits: Tensor, labels: Tensor, limit: float, weights: Tensor | None = None
    ) -> float:
        """By bisection: the loss is convex in it."""
        targets = labels.to(logits)
        weights = torch.ones_like(logits[0]) if weights is None else weights.to(logits)
        low, high = -limit, limit
        for _ in range(60):
            middle = (low + high) / 2
            probabilities = (logits + middle).sigmoid()
            slope = (1 - targets) * probabilities - weights * targets * (1 - probabilities)
            low, high = (middle, high) if float(slope.double().sum()) < 0 else (low, middle)
        return (low + high) / 2

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over classes."""
        return self.loss(logits, labels, reduction="none").sum(1)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of all classes, whether the image has them or not."""
        return (self.predicted(logits) == labels).double().mean(1)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """They are."""
        return labels.double()

    def curvature(self, classes: int) -> float:
        """Of a sigmoid."""
        return 0.25

    def counts(self, labels: Labels | Tensor, classes: int) -> Tensor:
        """Images that have the class."""
        return torch.as_tensor(labels).sum(0, dtype=torch.int64)

    def balanced(self, counts: Tensor, images: int) -> Tensor:
        """Images without the class, by those with it."""
        return (images - counts.double()) / counts

    def class_weights(self, labels: Tensor, classes: int) -> Tensor | None:
        """It takes none."""
        return None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Each class by itself."""
        return logits.sigmoid()

    def predicted(self, logits: Tensor) -> Tensor:
        """Classes with a probability of one half or more, bool."""
        return logits >= 0

    def class_numbers(self, labels: Any) -> list[int]:
        """Where the ones are."""
        return torch.as_tensor(labels).nonzero().flatten().tolist()

    score = staticmethod(mean_average_precision)
    metrics = staticmethod(multi_label_metrics)

    def interval(self, logits: Tensor, labels: Tensor) -> tuple[float, float] | None:
        """None is known."""
        return None

    def difference(
        self, after: Tensor, before: Tensor, labels: Tensor
    ) -> tuple[float, float] | None:
        """None is known."""
        return None

    def chance(self, train: Tensor, test: Tensor) -> float:
        """The mean share of the classes: the precision of somebody who says nothing."""
        share = test.double().mean(0)
        return float(share[share > 0].mean())

    def strata(self, labels: Tensor) -> Tensor:
        """All images are one."""
        return labels.new_zeros(len(labels), dtype=torch.int64)

    def by_image(
        self, labels: Labels, first: Rows, image_of: Rows, differing: Rows
    ) -> tuple[Labels, list[int], Rows]:
        """All images, with every label that a copy has; classes by the images that have them."""
        own = np.zeros((len(first), labels.shape[1]), dtype=labels.dtype)
        np.maximum.at(own, image_of, labels)
        order = sorted(range(labels.shape[1]), key=lambda label: own[:, label].tobytes())
        return own[:, order], order, np.arange(len(first))

    split = staticmethod(iterative_split)

    def folds(self, labels: Labels, folds: int) -> list[tuple[Rows, Rows]]:
        """A label of few images is not in all."""
        fold_of = iterative_folds(labels, folds)
        return [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(folds)]

    def group_folds(self) -> Any:
        """Alike in size alone."""
        from sklearn.model_selection import GroupKFold

        return GroupKFold

    def by_class(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Where the ones are."""
        return labels > 0

    # columns of a datasets.Dataset

    def feature(self, item: Any) -> Any:
        """A list."""
        from datasets import List

        return List(item)

    def each(self, column: Iterable[Any]) -> Iterator[Any]:
        """Those of every list."""
        return (label for entry in column for label in entry or ())

    def mapped(self, entry: Any, one: Callable[[Any], Any]) -> Any:
        """The list where there is one."""
        return entry and [one(label) for label in entry]

    def array(self, column: Sequence[Any], classes: int) -> Labels:
        """Zeros and ones, uint8 (N, C).

        >>> ManyLabels().array([[0, 2], []], 3).tolist()
        [[1, 0, 1], [0, 0, 0]]
        """
        labels = np.zeros((len(column), classes), dtype=np.uint8)
        images = np.repeat(np.arange(len(column)), np.array([len(entry) for entry in column], int))
        labels[images, list(self.each(column))] = 1
        return labels

    def width(self, feature: Any, name: str) -> int:
        """C.

        Raises:
            ResiDualError: the column does not say.
        """
        item = feature.feature
        if (classes := getattr(item, "num_classes", None)) is None:
            raise ResiDualError(
                f"the labels of {name} are lists of {item}: how many classes there are is not to "
                "be seen. load_data(...) gives them names."
            )
        return int(classes)

    def renumbered(self, labels: Tensor, numbers: Sequence[int], classes: int) -> Tensor:
        """In a row of `classes`."""
        moved = torch.zeros(classes, dtype=labels.dtype)
        moved[[numbers[number] for number in self.class_numbers(labels)]] = 1
        return moved
