"""Training by steps, for all methods alike: rate and epochs by what is said of a held-out fold.

The paper's budget for every method (`method.md`, section 4): at most 30 epochs, and no more once
five in a row were no better. What is equal on top of it: three rates each, and one fold of the
training images, the same for all, to choose by; then all training images are trained on. Where a
protocol draws images to choose by, these are taken in place of the fold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...classifiers.heads.calibrating import calibrate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...errors import counted
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Rows
from .pixels import Images

EPOCHS, PATIENCE = 30, 5
LARGEST_BATCH, SMALLEST_BATCH, STEPS = 64, 8, 8
"""Batches are of an eighth of the images, as far as that is no more and no less."""
RATES = 3
HELD_OUT, HELD_OUT_SHARE = 0, 1 / 5
"""Which fold, and how much of the images it is, of five images per class or more."""


@dataclass(frozen=True)
class Learned:
    """Training images (N,), then V to choose by: their coordinates, and the same as pictures."""

    data: Coordinates
    images: Images


@dataclass(frozen=True)
class Training:
    """What a method is given."""

    rows: Rows  # the training images' coordinates, labels and folds
    learned: Learned  # these images in the same order, and those to choose by
    seed: int  # of the run

    def held_out(self) -> "ChoosingImages | None":
        """What is chosen by; None where there is nothing."""
        count, every = len(self.rows.labels), torch.arange(len(self.learned.data.labels))
        if len(every) > count:
            held, classifier, what = every >= count, self.rows.classifier, "validation image"
        elif self.rows.fold is not None:
            held, what = self.rows.fold == HELD_OUT, "held-out training image"
            classifier = self.rows.classifier_without(HELD_OUT)
        else:
            return None
        outside = every[held]
        chosen = f"chosen by {counted(len(outside), what)}"
        return ChoosingImages(every[~held], outside, classifier, chosen)


@dataclass(frozen=True)
class ChoosingImages:
    """What choices are made by."""

    inside: Tensor  # places of the images that are trained on meanwhile, among the learned ones
    outside: Tensor  # of those that choose
    classifier: ZeroShotClassifier  # that has seen none of the latter
    chosen: str  # by what, in words


class Learner(Protocol):
    """What is trained by steps; images are named by their places (n,) among the learned ones."""

    classifier: ZeroShotClassifier  # whose classes it is trained to tell, its own copy
    # whether its rate falls until the last step. Then that is what all images are trained to:
    # stopped on the way, at a rate that is still high, LoRA and full fine-tuning were one to four
    # points worse on the validation images of handwriting
    scheduled: bool

    def begin(self, rate: float, steps: int) -> None:
        """Start anew, at a rate, for so many steps at most."""

    def epoch(self, places: Tensor, size: int) -> None:
        """A step on each so many images, in the order given."""

    def logits(self, places: Tensor) -> Tensor:
        """What it says of images as it stands (n, C), on the CPU."""


@dataclass(frozen=True)
class RateChoice:
    """What was chosen."""

    rate: float  # of the optimizer
    epochs: int  # that all training images are trained for; 0 where none bettered the start
    how: str = "not chosen, as no image could be held out"  # by which images, in words
    log_loss: float = float("inf")  # of these, at the temperature that suits them best

    @property
    def note(self) -> str:
        """For a row."""
        return f"rate {self.rate:g}, {counted(self.epochs, 'epoch')}: {self.how}."


def train(
    learner: Learner, training: Training, rates: Sequence[float], epochs: int = EPOCHS
) -> RateChoice:
    """Choose rate and epochs on images that are held out, then train on all training images so.

    Without anything to choose by, the middle of the three increasing rates and all epochs are
    taken. The learner is left as trained on all training images.
    """
    choice = RateChoice(rates[len(rates) // 2], epochs)
    count, held = len(training.rows.labels), training.held_out()
    if held is not None:
        own = learner.classifier.class_embeddings
        # of class means, those that no held-out image is in
        learner.classifier.class_embeddings = held.classifier.class_embeddings
        try:
            tried = [_tried(learner, training, held, rate, epochs) for rate in rates]
        finally:
            learner.classifier.class_embeddings = own
        choice = min(tried, key=lambda one: one.log_loss)
        if learner.scheduled and choice.epochs:
            choice = replace(choice, epochs=epochs)
    for epoch in _epochs(learner, training, torch.arange(count), choice.rate, epochs):
        if epoch == choice.epochs:
            break
    return choice


def passes(images: int, validation: int = 0) -> int:
    """Images that a method reads forward and back to choose and to train on so many, at most.

    Args:
        images: training images.
        validation: others to choose by; a fold of the training images is held out without.
    """
    held = 0 if validation else round(images * HELD_OUT_SHARE)
    return EPOCHS * (images + RATES * (images - held))


def _epochs(
    learner: Learner, training: Training, places: Tensor, rate: float, epochs: int
) -> Iterator[int]:
    """Begin at a rate, then train on each of some images once for every number but the first, 0."""
    images = len(training.rows.labels)  # in all, whether trained on or held out
    size = min(LARGEST_BATCH, max(SMALLEST_BATCH, images // STEPS))
    generator = torch.Generator().manual_seed(training.seed)
    learner.begin(rate, epochs * -(-len(places) // size))
    yield 0
    for epoch in range(1, epochs + 1):
        learner.epoch(places[torch.randperm(len(places), generator=generator)], size)
        yield epoch


def _tried(
    learner: Learner, training: Training, held: ChoosingImages, rate: float, epochs: int
) -> RateChoice:
    """One rate, and its best epoch by held-out images; the start counts as one."""
    labels = training.learned.data.labels[held.outside]
    best, least = 0, float("inf")
    for epoch in _epochs(learner, training, held.inside, rate, epochs):
        if (loss := log_loss(learner.logits(held.outside), labels)) < least:
            best, least = epoch, loss
        elif epoch - best >= PATIENCE:
            break
    return RateChoice(rate, best, held.chosen, least)


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """At the best temperature, as other methods are chosen by; infinite once it breaks."""
    if not logits.isfinite().all():
        return float("inf")
    return calibrate(logits.double(), labels, torch.ones(len(labels), dtype=torch.float64)).loss
