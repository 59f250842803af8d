"""Predictions and metrics of one adapter over a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ..bases.rows import Rows
from ..data import Batches, ProcessedImages, batches
from ..data.labels import Labelling, check_same, labelling_in
from ..data.labels.columns import labels_in
from ..data.metrics import Array, accuracy_interval, confusion_matrix
from ..data.progress import Progress
from ..errors import ResiDualError, some
from .zero_shot import ZeroShotClassifier


@dataclass(frozen=True)
class Evaluation:
    """What a classifier said of N images, and how good it was.

    With several labels per image, `labels` are zeros and ones (N, C); `confusion` is for one
    label per image.

    Attributes:
        class_names: of the C classes.
        logits: (N, C).
        labels: (N,), or (N, C).
        index: the images' rows in their split (N,); None: all, in order.
        skipped: row, file and reason of unreadable images.
        thresholds: of several labels (C,); None for 0 (`TrainedHead`).
    """

    class_names: tuple[str, ...]
    logits: Tensor
    labels: Tensor
    index: Tensor | None = None
    skipped: tuple[tuple[int, str, str], ...] = ()
    thresholds: Tensor | None = None

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_in(self.labels)

    @property
    def decided(self) -> Tensor:
        """The logits less the thresholds, (N, C): of several labels those from 0 on are given."""
        return self.logits if self.thresholds is None else self.logits - self.thresholds

    @property
    def predictions(self) -> Tensor:
        """The class of the highest logit, (N,); or which of several are likely, bool (N, C)."""
        return self.labelling.predicted(self.decided)

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy, top-5 accuracy and mean per-class recall; or those of `multi_label_metrics`."""
        return self.labelling.metrics(self.decided, self.labels)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the accuracy; None with several labels per image."""
        return self.labelling.interval(self.logits, self.labels)

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Of each class that has images: how many, the share that is told, its 95 % interval."""
        classes = len(self.class_names)
        own = self.labelling.targets(self.labels, classes) > 0
        told = own & (self.labelling.targets(self.predictions, classes) > 0)
        counts = zip(self.class_names, told.sum(0).tolist(), own.sum(0).tolist(), strict=True)
        return {
            name: {
                "images": images,
                "recall": right / images,
                "recall_interval": list(accuracy_interval(right, images)),
            }
            for name, right, images in counts
            if images
        }

    @property
    def confusion(self) -> Array:
        """Counts (C, C): row = label, column = prediction."""
        return confusion_matrix(self.logits, self.labels)


@torch.no_grad()
def evaluate(
    classifier: ZeroShotClassifier,
    dataset: Dataset | ProcessedImages | Batches,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    skip: bool = False,
    name: str = "the dataset",
    progress: Progress = False,
) -> Evaluation:
    """Classify every image of a split with the model as it is, active adapter and head included.

    Args:
        classifier: what to evaluate; its model is put into eval mode meanwhile.
        dataset: a split of `load_data`, its `ProcessedImages`, or its `batches`, whose own options
            then hold. Where its class numbers have names, classes are found by these; where none of
            them is the classifier's, whose names may be other words for them, by their numbers.
        batch_size: images per forward pass.
        num_workers: processes that decode images, as for `batches`.
        skip: leave out images that cannot be read; `Evaluation.skipped` lists them.
        name: what to call the split in messages.
        progress: True for a bar, or what to call after each batch with its number of images.

    Raises:
        ResiDualError: no split, no images, no image processor, an image that cannot be read (names
            it), labels outside the classes, or names of which the classifier has some alone.
    """
    if isinstance(dataset, Dataset | ProcessedImages | Batches) and len(dataset) == 0:
        raise ResiDualError(f"wanted images to evaluate on, {name} has none.")
    if isinstance(dataset, Dataset) and classifier.image_processor is None:
        raise ResiDualError("wanted a classifier with an image processor to evaluate on images.")
    loader = batches(
        dataset,
        classifier.image_processor,
        batch_size=batch_size,
        num_workers=num_workers,
        skip=skip,
        name=name,
    )
    numbers = _numbers_by_name(classifier, loader.dataset, name)
    count = loader.image_count
    logits, labels, rows = Rows(count), Rows(count), Rows(count)
    labelling = classifier.labelling
    passed = classifier.classified(
        loader, labelled=True, progress=progress, description="Classifying"
    )
    for seen, scores in passed:
        assert seen.labels is not None
        assert seen.index is not None
        own = seen.labels
        if numbers is not None:
            rows_of = [
                labelling.renumbered(row, numbers, len(classifier.class_names)) for row in own
            ]
            own = torch.stack(rows_of)
        classifier.check_labels(own)
        logits.add(scores)
        labels.add(own)
        rows.add(seen.index)
    return Evaluation(
        classifier.class_names,
        logits.joined(),
        labels.joined(),
        rows.joined(),
        tuple(loader.skipped),
        classifier.thresholds,
    )


def in_order(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether class numbers of data may be a classifier's.

    A classifier may have other words for some classes, or all, but not one name in another place.
    """
    both = set(names) & set(known)
    alike = len(names) == len(known) and all(names.index(n) == known.index(n) for n in both)
    return alike or not both


def _numbers_by_name(classifier: ZeroShotClassifier, images: Any, name: str) -> list[int] | None:
    """Of each class of the images, its number among the classifier's; None where they stay."""
    names, known = getattr(images, "class_names", None), classifier.class_names
    if names is None or in_order(names, known):
        return None
    check_same(classifier.labelling, images.labelling, "bring labels like those of its fit")
    present = set(images.labelling.each(labels_in(images.dataset)))
    if strange := [own for n, own in enumerate(names) if own not in known and n in present]:
        raise ResiDualError(
            f"wanted images of the classifier's classes ({some(known)}), got some of "
            f"{some(strange)} in {name}, which it does not know: leave those out."
        )
    return [known.index(own) if own in known else -1 for own in names]
