"""One label per image: class numbers (N,), a softmax over all classes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from ..metrics import accuracy, accuracy_interval, classification_metrics, difference_interval
from ..stratification import Labels, Rows, stratified_split
from .heads import HeadsOfOneLabel


class OneLabel(HeadsOfOneLabel):
    """Each image is of one class."""

    multi_label = False  # whether an image may have several labels, or none
    words = "one label"  # how many that is, for messages
    most: int | None = 1  # how many labels an image has at most; None for all classes
    # the loss that suits it, as `Objective` calls it
    loss_name: Literal["softmax", "sigmoid"] = "softmax"
    parameters: tuple[str, ...] = ()  # what a fit has beside gains
    fewest_classes = 2  # that there can be a choice among
    # of all metrics, the first told first
    metric_names: tuple[str, ...] = ("accuracy", "top5_accuracy", "mean_per_class_recall")
    metric_words = "accuracy"  # the first for people
    # what `chance` is the score of, in short and in a sentence
    chance_words = ("the largest class alone", "always answering with the largest class")
    answer_words = "probabilities of"  # what a file answers with, for messages
    # the probability from which on a class is a label; None for the largest alone
    threshold: float | None = None
    unmoved_words = ""  # why it is not told what moved an image from class to class; "" where it is
    # what becomes of an image whose copies have different labels
    differing_words = "; trained on, not scored"

    def check(self, labels: Tensor, classes: int) -> None:
        """Raise a ResiDualError unless the labels of a batch suit so many classes."""
        if labels.ndim != 1:
            raise ResiDualError(
                f"wanted one label per image, got labels of shape {tuple(labels.shape)}; several "
                "labels per image need a classifier with multi_label=True, and "
                "Objective(loss='sigmoid') to fit it."
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ResiDualError(f"wanted class numbers as labels, got {labels.dtype}.")
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ResiDualError(
                f"wanted labels from 0 to {classes - 1} ({classes} classes), got "
                f"{int(labels[row])} for image {row} of the batch."
            )

    def check_smoothing(self, smoothing: float, name: str) -> None:
        """Raise a ResiDualError where labels cannot be smoothed so; `name` is the setting's."""
        if not 0 <= smoothing < 1:
            raise ResiDualError(f"wanted {name} from 0 to below 1, got {smoothing}.")

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
        """Cross-entropy of logits (N, C), without the bias.

        Weights are of each class (C,), of the positives where each has a sigmoid; `bias` is of all
        sigmoids, as a softmax does not change with it; `reduction` is "mean" over the entries of
        `labels`, "sum" or "none".
        """
        return functional.cross_entropy(
            logits, labels.long(), weights, reduction=reduction, label_smoothing=smoothing
        )

    def normalizer(self, labels: Tensor, weights: Tensor | None, classes: int) -> float:
        """What the sum of losses is divided by, so that it is torch's own mean."""
        return float(len(labels) if weights is None else weights[labels.cpu().long()].sum())

    def best_bias(
        self, logits: Tensor, labels: Tensor, limit: float, weights: Tensor | None = None
    ) -> float:
        """The number below `limit` in size that, added to logits (N, C), makes their loss least.

        Raises:
            ResiDualError: a softmax does not change with it.
        """
        raise ResiDualError(
            "a softmax does not change with a bias: fit_bias is for a classifier with "
            "multi_label=True."
        )

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each image, (N,)."""
        return self.loss(logits, labels, reduction="none")

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The share of each image's labels that logits tell, (N,) float64."""
        return (self.predicted(logits) == labels).double()

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Zeros and ones (N, C), float64."""
        return functional.one_hot(labels.long(), classes).double()

    def curvature(self, classes: int) -> float:
        """p (1 − p) of each class where all are alike likely."""
        return (1 - 1 / classes) / classes

    def counts(self, labels: Labels | Tensor, classes: int) -> Tensor:
        """Images of each class, (C,)."""
        return torch.bincount(torch.as_tensor(labels), minlength=classes)

    def balanced(self, counts: Tensor, images: int) -> Tensor:
        """Class weights under which all classes count alike, from their images: N / (C · n_c)."""
        return images / (len(counts) * counts.double())

    def class_weights(self, labels: Tensor, classes: int) -> Tensor | None:
        """The same from labels, for a class head; None where it takes none."""
        return self.balanced(self.counts(labels, classes), len(labels))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class, (N, C)."""
        return logits.softmax(-1)

    def predicted(self, logits: Tensor) -> Tensor:
        """What logits (N, C) say, as labels."""
        return logits.argmax(-1)

    def class_numbers(self, labels: Any) -> list[int]:
        """The classes of one image, from its row of labels."""
        return [int(labels)]

    score = staticmethod(accuracy)  # the first of the metrics
    metrics = staticmethod(classification_metrics)  # all of them, by name

    def interval(self, logits: Tensor, labels: Tensor) -> tuple[float, float] | None:
        """The first metric's 95 % interval; None where none is known."""
        return accuracy_interval(int((self.predicted(logits) == labels).sum()), len(labels))

    def difference(
        self, after: Tensor, before: Tensor, labels: Tensor
    ) -> tuple[float, float] | None:
        """The same of what the first metric gained on the same images."""
        return difference_interval(
            self.predicted(after) == labels, self.predicted(before) == labels
        )

    def chance(self, train: Tensor, test: Tensor) -> float:
        """The first metric of somebody who sees no image: of the training images' largest class."""
        return float((test == torch.bincount(train).argmax()).double().mean())

    def strata(self, labels: Tensor) -> Tensor:
        """Numbers (N,) of what folds are to hold alike."""
        return labels

    def by_image(
        self, labels: Labels, first: Rows, image_of: Rows, differing: Rows
    ) -> tuple[Labels, list[int], Rows]:
        """Labels of different images, classes in an order that the images alone decide.

        Of all rows, the first row of each image, the image of each row, and images whose rows have
        different labels -> labels of the images that can be cut, the classes in their order, and
        these images.
        """
        clear = np.setdiff1d(np.arange(len(first)), differing)
        numbers, starts, place = np.unique(
            labels[first][clear], return_index=True, return_inverse=True
        )
        order = np.argsort(starts)  # by the first image of each class
        return np.argsort(order)[place], numbers[order].tolist(), clear

    split = staticmethod(stratified_split)

    def folds(self, labels: Labels, folds: int) -> list[tuple[Rows, Rows]]:
        """Rows inside and outside each fold, each class in all of them alike.

        Raises:
            ResiDualError: fewer images of a class than folds.
        """
        from sklearn.model_selection import StratifiedKFold

        least = int(np.unique(labels, return_counts=True)[1].min())
        if least < folds:
            raise ResiDualError(
                f"wanted as many images of each class as folds, got folds={folds} and {least} "
                "images of the rarest class; give validation images instead."
            )
        return list(StratifiedKFold(folds).split(np.zeros(len(labels)), labels))

    def group_folds(self) -> Any:
        """Scikit-learn's folds that keep groups whole, as alike as that lets."""
        from sklearn.model_selection import StratifiedGroupKFold

        return StratifiedGroupKFold

    def by_class(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Which rows are of each class that there is, (N, C)."""
        return labels[:, None] == np.unique(labels)

    # columns of a datasets.Dataset

    def feature(self, item: Any) -> Any:
        """The feature of a column of such labels."""
        return item

    def each(self, column: Iterable[Any]) -> Iterator[Any]:
        """All labels of a column."""
        return iter(column)

    def mapped(self, entry: Any, one: Callable[[Any], Any]) -> Any:
        """An entry of a column with its labels mapped."""
        return one(entry)

    def array(self, column: Sequence[Any], classes: int) -> Labels:
        """Class numbers as a column has them -> labels, int64 (N,)."""
        return np.asarray(column, dtype=np.int64)

    def width(self, feature: Any, name: str) -> int:
        """How many classes a column tells of, where its labels need it; 0 for numbers."""
        return 0

    def renumbered(self, labels: Tensor, numbers: Sequence[int], classes: int) -> Tensor:
        """One image's labels with other class numbers, one of each of the old, of `classes`."""
        return torch.as_tensor(numbers[int(labels)])
