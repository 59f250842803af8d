"""Training by steps, for all methods alike: rate and epochs by what is said of a held-out fold.

The paper's budget for every method (`method.md`, section 4): at most 30 epochs, and no more once
five in a row were no better. What is equal on top of it: three rates each, and one fold of the
training images, the same for all, to choose by; then all images are trained on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...classifiers.heads.calibrating import calibrate
from ...classifiers.zero_shot import ZeroShotClassifier
from ...errors import counted
from ...solvers.methods import Rows

EPOCHS, PATIENCE = 30, 5
LARGEST_BATCH, SMALLEST_BATCH, STEPS = 64, 8, 8
"""Batches are of an eighth of the images, as far as that is no more and no less."""
RATES = 3
HELD_OUT, HELD_OUT_SHARE = 0, 1 / 5
"""Which fold, and how much of the images it is, of five images per class or more."""


class Learner(Protocol):
    """What is trained by steps; images are named by their places (n,) among the training images.

    Attributes:
        classifier: whose classes it is trained to tell, its own copy.
        scheduled: whether its rate falls until the last step. Then that is what all images are
            trained to: stopped on the way, at a rate that is still high, LoRA and full fine-tuning
            were one to four points worse on the validation images of handwriting.
    """

    classifier: ZeroShotClassifier
    scheduled: bool

    def begin(self, rate: float, steps: int) -> None:
        """Start anew, at a rate, for so many steps at most."""

    def epoch(self, places: Tensor, size: int) -> None:
        """A step on each so many images, in the order given."""

    def logits(self, places: Tensor) -> Tensor:
        """What it says of images as it stands (n, C), on the CPU."""


@dataclass(frozen=True)
class Choice:
    """What was chosen."""

    rate: float  # of the optimizer
    epochs: int  # that all images are trained for; 0 where no epoch bettered the start
    held_out: int  # images it was chosen by; 0 where none could be held out
    log_loss: float | None  # of these, at the temperature that suits them best; None without

    @property
    def note(self) -> str:
        """For a row."""
        how = (
            f"chosen by {counted(self.held_out, 'held-out training image')}"
            if self.held_out
            else "not chosen, as no image could be held out"
        )
        return f"rate {self.rate:g}, {counted(self.epochs, 'epoch')}: {how}."


def train(
    learner: Learner,
    rows: Rows,
    rates: Sequence[float],
    seed: int,
    epochs: int = EPOCHS,
) -> Choice:
    """Choose rate and epochs on a held-out fold, then train on all images with these.

    Without folds the middle of the three increasing rates and all epochs are taken. The learner is
    left as trained on all images.
    """
    choice = Choice(rates[len(rates) // 2], epochs, 0, None)
    labels = rows.labels
    if rows.fold is not None:
        held = rows.fold == HELD_OUT
        with _classes(learner, rows.classifier_without(HELD_OUT).class_embeddings):
            tried = [_tried(learner, labels, held, rate, seed, epochs) for rate in rates]
        choice = min(tried, key=lambda one: (one.log_loss is None, one.log_loss))
        if learner.scheduled and choice.epochs:
            choice = replace(choice, epochs=epochs)
    run = _Run(learner, torch.arange(len(labels)), len(labels), epochs, seed)
    run.begin(choice.rate)
    for _ in range(choice.epochs):
        run.epoch()
    return choice


@contextmanager
def _classes(learner: Learner, embeddings: Tensor) -> Iterator[None]:
    """Other class embeddings (C, d) while the block runs: means that no held-out image is in."""
    own = learner.classifier.class_embeddings
    learner.classifier.class_embeddings = embeddings
    try:
        yield
    finally:
        learner.classifier.class_embeddings = own


def passes(images: int) -> int:
    """Images that a method reads forward and back to choose and to train on so many, at most."""
    return EPOCHS * (images + RATES * (images - round(images * HELD_OUT_SHARE)))


@dataclass
class _Run:
    """Epochs over some images in random order."""

    learner: Learner
    places: Tensor
    images: int  # in all, whether trained on or held out
    epochs: int
    seed: int

    def begin(self, rate: float) -> None:
        """Start anew."""
        self.generator = torch.Generator().manual_seed(self.seed)
        self.size = min(LARGEST_BATCH, max(SMALLEST_BATCH, self.images // STEPS))
        self.learner.begin(rate, self.epochs * -(-len(self.places) // self.size))

    def epoch(self) -> None:
        """Each image once."""
        order = torch.randperm(len(self.places), generator=self.generator)
        self.learner.epoch(self.places[order], self.size)


def _tried(
    learner: Learner, labels: Tensor, held: Tensor, rate: float, seed: int, epochs: int
) -> Choice:
    """One rate, and its best epoch; the start counts as one."""
    outside = held.nonzero().flatten()
    run = _Run(learner, (~held).nonzero().flatten(), len(labels), epochs, seed)
    run.begin(rate)
    best, least = 0, log_loss(learner.logits(outside), labels[outside])
    for epoch in range(1, epochs + 1):
        run.epoch()
        if (loss := log_loss(learner.logits(outside), labels[outside])) < least:
            best, least = epoch, loss
        elif epoch - best >= PATIENCE:
            break
    return Choice(rate, best, len(outside), least)


def log_loss(logits: Tensor, labels: Tensor) -> float:
    """At the best temperature, as other methods are chosen by; infinite once it breaks."""
    if not logits.isfinite().all():
        return float("inf")
    return calibrate(logits.double(), labels, torch.ones(len(labels), dtype=torch.float64)).loss
