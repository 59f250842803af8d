"""What a method is, and what it comes to."""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...classifiers.heads import LeftOut, RidgeSettings
from ...classifiers.heads.conformal import scores_of
from ...classifiers.heads.finishing import finish
from ...classifiers.heads.head import FittedHead, spread
from ...classifiers.heads.images import checked
from ...classifiers.heads.jackknife_plus import RidgeWithout
from ...classifiers.heads.left_out import How, leaving_of
from ...classifiers.trained_head import Features, TrainedHead, thresholds_of
from ...classifiers.zero_shot import ZeroShotClassifier
from ...tuner import gains_of
from ..coordinates import Coordinates
from .rows import Rows


@dataclass(frozen=True)
class Outcome:
    """What a method came to."""

    method: str  # its name
    left_out: LeftOut  # what it says of each training image by a fit without the image's fold
    parameter_count: int  # numbers trained
    seconds: float = 0.0  # that the fit took, choices of its strengths included
    head: TrainedHead | None = None  # a class head to put into the classifier
    gains: Tensor | None = None  # to put into the adapter, (K,) or (U,)
    bias: float | None = None  # of the logits, which a fit with several labels per image sets
    logit_scale: float | None = None  # of the cosines, where left-out images say how sure they are
    # of the classes (C, d), where they are no longer those of the texts
    embeddings: Tensor | None = None
    strength: float | None = None  # of its ridge or penalty, where it has one
    notes: tuple[str, ...] = ()  # what the user should know
    share: float = 0.0  # β of the images' means in the embeddings
    power: float = 0.5  # p of a ridge's scales
    settings: RidgeSettings | None = None  # of a ridge, which its head can be changed by
    columns: Tensor | None = None  # which of the head's features were fitted on; None for all
    # of a ridge with one label per image: its fits without each part of the images
    without: Callable[[], RidgeWithout] | None = None

    @property
    def bytes(self) -> int:
        """What was fitted takes on disk; the basis of coordinates, which all share, aside."""
        own = [part for part in (self.gains, self.embeddings) if part is not None]
        taken = sum(part.numel() * part.element_size() for part in own)
        return taken + (0 if self.head is None else self.head.bytes)

    def logits(self, classifier: ZeroShotClassifier, rows: Coordinates) -> Tensor:
        """Logits (n, C) of other images of the same adapter, the classifier left as it is."""
        answering = copy(classifier)
        self._put_beside_gains(answering)
        adapted = rows.readout if self.gains is None else rows.adapted(self.gains)
        return answering.answer(adapted, rows.readout, rows.coordinates).cpu()

    def put_into(self, classifier: ZeroShotClassifier) -> None:
        """Give the classifier what was fitted; gains go into its model's active adapter."""
        self._put_beside_gains(classifier)
        if self.gains is not None:
            target = gains_of(classifier.model)
            with torch.no_grad():
                target.copy_(self.gains)

    def _put_beside_gains(self, classifier: ZeroShotClassifier) -> None:
        classifier.head = self.head
        if self.bias is not None:
            classifier.logit_bias = self.bias
        if self.logit_scale is not None:
            classifier.logit_scale = self.logit_scale
        if self.embeddings is not None:
            classifier.class_embeddings = self.embeddings


@dataclass(frozen=True)
class Method:
    """A way to fit."""

    title: str  # in words
    fit: Callable[[Rows], Outcome]  # rows -> outcome, all but its seconds
    many_labels: bool = True  # whether it can do with several labels per image
    # whether it is compared unless it is asked for by name: what costs more than the pass over the
    # images and is no better (`benchmarks/heads_rivals.json`) is not
    tried: bool = True
    of_texts: bool = False  # whether it is for classes that are texts, and not means of the images
    # of a ridge, what it reads: features, and the kinds of their units (all when empty)
    ridge: tuple[Features, tuple[str, ...]] | None = None

    def run(self, rows: Rows) -> Outcome:
        """Fit, and measure how long it takes."""
        if self.of_texts:
            rows.check_texts(self.title)
        started = time.perf_counter()
        outcome = self.fit(rows)
        return replace(outcome, seconds=time.perf_counter() - started)


def tempered(rows: Rows, logits: Tensor) -> tuple[float, LeftOut]:
    """The temperature, and the left-out logits (N, C) times it."""
    data = checked(
        torch.zeros(len(logits), 1), rows.labels, rows.class_count, class_weights=rows.class_weights
    )
    how: How | None = "none" if rows.fold is None else None
    leaving = leaving_of(rows.labels, rows.class_count, rows.fold, how)
    _, temperature, left = finish(logits.double(), data, leaving.how, leaving.known)
    return temperature, left


def title_of(what: str, features: Features, kinds: tuple[str, ...] = ()) -> str:
    """Of a method that fits a class head on some features."""
    if features == "embedding":
        return f"{what} on the embedding (a linear probe)"
    return f"{what} on the coordinates{' of heads' if kinds else ''}"


def of_head(
    name: str,
    rows: Rows,
    features: Features,
    done: FittedHead,
    kinds: tuple[str, ...] = (),
    left: LeftOut | None = None,
    **more: Any,
) -> Outcome:
    """The outcome of a fitted class head; `left` is compared in place of its own left-outs."""
    head, columns = done.head, None
    if features == "coordinates":
        columns = rows.columns(kinds)
        head = spread(head, columns, rows.data.coordinates.shape[1])
    own = TrainedHead(
        head.to(torch.float32),
        features,
        name,
        scores_of(done.left_out),
        thresholds=thresholds_of(done.left_out),
    )
    left = done.left_out if left is None else left
    return Outcome(name, left, done.parameter_count, head=own, columns=columns, **more)
