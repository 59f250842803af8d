"""What may be fitted on the rows of one pass, behind one interface: zero-shot, gains, class heads.

Every method says what it thinks of training images that it did not see, on the same folds for all,
so that `choice` can compare them without a single test image.
"""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..classifiers.class_means import class_means_of
from ..classifiers.heads import ClassHead, LeftOut, RidgeSettings, choose_ridge, fit_ridge
from ..classifiers.heads.blend import blend
from ..classifiers.heads.discriminant import fit_discriminant
from ..classifiers.heads.finishing import across_folds, finish
from ..classifiers.heads.folds import stratified_folds
from ..classifiers.heads.head import spread
from ..classifiers.heads.images import checked, duplicate_groups
from ..classifiers.heads.left_out import How, leaving_of
from ..classifiers.heads.logistic import fit_logistic
from ..classifiers.trained_head import Features, TrainedHead, embedding_features, scores_of
from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError
from ..tuner import ReadoutState, gains_of
from .coordinates import Coordinates
from .objectives import GainProblem, Objective
from .quasi_newton import lbfgs, solve_gains
from .store import CoordinateStore, Stores
from .strengths import STRENGTHS

FOLDS = 5
SHARED = (
    "classes are their texts with {} of the means of their images, which told left-out images "
    "apart better than texts alone."
)
_PATIENCE = 2  # weaker ridges tried after the best one
_COARSE = 1e-3  # gradient of fits that are only compared


@dataclass(frozen=True)
class Rows:
    """Training images as methods take them.

    Attributes:
        classifier: class embeddings and scale; its model has the adapter of the coordinates.
        seen: N images' readouts, labels and coordinates, in memory.
        zero_shot: the texts' logits z (N, C); where classes are means of these images, those of
            means without the image's fold.
        groups: (N,), images of one number are left out together. Copies of one picture are, where
            nothing else is given: what is said of one that was left out would be too good.
        copies: how many images are copies of others.
        class_weights: what an image of each class counts (C,).
        fold: of each image (N,), the same for all methods; None where there are no two images of
            any class, so that nothing can be left out.
        means: whether the classifier's classes are the means of these images.
        by_labels: whether a ridge is to be fitted to labels alone, so that sums give it; else to
            what the text leaves of them where that is better.
    """

    classifier: ZeroShotClassifier
    seen: Coordinates
    zero_shot: Tensor
    groups: Tensor | None = None
    class_weights: Tensor | None = None
    fold: Tensor | None = None
    copies: int = 0
    means: bool = False
    by_labels: bool = False

    @classmethod
    def of(
        cls,
        classifier: ZeroShotClassifier,
        seen: Coordinates,
        *,
        means: bool = False,
        groups: Tensor | None = None,
        class_weights: Tensor | None = None,
        by_labels: bool = False,
    ) -> "Rows":
        """Rows with their folds.

        Args:
            classifier: as above.
            seen: as above.
            means: whether the classifier's classes are the means of these images.
            groups: as above.
            class_weights: as above.
            by_labels: as above.

        Raises:
            ResiDualError: labels that do not suit the classifier.
        """
        classifier.check_labels(seen.labels)
        same = duplicate_groups(seen.readout)
        copies = len(same) - len(same.unique())
        if groups is None and copies:
            groups = same
        fold = stratified_folds(seen.labels, folds=FOLDS, groups=groups)
        zero_shot = _text_logits(classifier, seen.readout)
        if means and fold is not None:
            zero_shot = _without_own_fold(classifier, seen, fold)
        return cls(
            classifier, seen, zero_shot, groups, class_weights, fold, copies, means, by_labels
        )

    @property
    def class_count(self) -> int:
        """C."""
        return len(self.classifier.class_names)

    @property
    def labels(self) -> Tensor:
        """(N,), or zeros and ones (N, C)."""
        return self.seen.labels

    def features(self, features: Features, kinds: tuple[str, ...] = ()) -> Tensor:
        """What a head reads of the images: (N, d), or (N, K) of units of some kinds."""
        if features == "embedding":
            return embedding_features(self.seen.readout)
        return self.seen.coordinates[:, self.columns(kinds)] if kinds else self.seen.coordinates

    def columns(self, kinds: tuple[str, ...] = ()) -> Tensor:
        """Which components are of units of some kinds; all when empty."""
        return columns_of(self.seen.state, kinds)

    def some(self, index: Tensor) -> "Rows":
        """Some of the images; folds are cut anew."""
        groups = None if self.groups is None else self.groups[index]
        seen = self.seen.rows(index)
        fold = stratified_folds(seen.labels, folds=FOLDS, groups=groups)
        return replace(self, seen=seen, zero_shot=self.zero_shot[index], groups=groups, fold=fold)


@dataclass(frozen=True)
class Outcome:
    """What a method came to.

    Attributes:
        method: its name.
        left_out: what it says of each training image by a fit without the image's fold.
        parameter_count: numbers trained.
        seconds: that the fit took, choices of its strengths included.
        head: a class head to put into the classifier.
        gains: to put into the adapter, (K,) or (U,).
        bias: of the logits, which a fit with several labels per image sets.
        embeddings: of the classes (C, d), where they are no longer those of the texts.
        strength: of its ridge or penalty, where it has one.
        notes: what the user should know.
        share: β of the images' means in the embeddings.
        power: p of a ridge's scales.
        settings: of a ridge, which its head can be changed by.
        columns: which of the head's features were fitted on; None for all.
    """

    method: str
    left_out: LeftOut
    parameter_count: int
    seconds: float = 0.0
    head: TrainedHead | None = None
    gains: Tensor | None = None
    bias: float | None = None
    embeddings: Tensor | None = None
    strength: float | None = None
    notes: tuple[str, ...] = ()
    share: float = 0.0
    power: float = 0.5
    settings: RidgeSettings | None = None
    columns: Tensor | None = None

    def logits(self, classifier: ZeroShotClassifier, rows: Coordinates) -> Tensor:
        """Logits (n, C) of other images of the same adapter, the classifier left as it is."""
        answering = copy(classifier)
        answering.head = self.head
        if self.bias is not None:
            answering.logit_bias = self.bias
        if self.embeddings is not None:
            answering.class_embeddings = self.embeddings
        adapted = rows.readout if self.gains is None else rows.adapted(self.gains)
        return answering.answer(adapted, rows.readout, rows.coordinates).cpu()

    def put_into(self, classifier: ZeroShotClassifier) -> None:
        """Give the classifier what was fitted; gains go into its model's active adapter."""
        classifier.head = self.head
        if self.bias is not None:
            classifier.logit_bias = self.bias
        if self.embeddings is not None:
            classifier.class_embeddings = self.embeddings
        if self.gains is not None:
            target = gains_of(classifier.model)
            with torch.no_grad():
                target.copy_(self.gains)


@dataclass(frozen=True)
class Method:
    """A way to fit.

    Attributes:
        title: in words.
        fit: rows -> outcome, all but its seconds.
        several: whether it can do with several labels per image.
        tried: whether it is compared unless it is asked for by name: what costs more than the pass
            over the images and is no better (`benchmarks/heads_rivals.json`) is not.
        ridge: of a ridge, what it reads: features, and the kinds of their units (all when empty).
    """

    title: str
    fit: Callable[[Rows], Outcome]
    several: bool = True
    tried: bool = True
    ridge: tuple[Features, tuple[str, ...]] | None = None

    def run(self, rows: Rows) -> Outcome:
        """Fit, and measure how long it takes."""
        started = time.perf_counter()
        outcome = self.fit(rows)
        return replace(outcome, seconds=time.perf_counter() - started)


def columns_of(state: ReadoutState, kinds: tuple[str, ...] = ()) -> Tensor:
    """Which components are of units of some kinds; all when empty."""
    inside = [not kinds or unit.kind in kinds for unit in state.settings.units]
    return torch.tensor(inside).repeat_interleave(torch.tensor(state.counts)).nonzero().flatten()


def _zero_shot(rows: Rows) -> Outcome:
    return Outcome("zero-shot", _finished(rows, rows.zero_shot), 0)


def _gains(rows: Rows) -> Outcome:
    """The linear objective, its ridge chosen by what it says of folds that it did not see.

    Classes are texts, means of their images, or a blend of both, whichever tells left-out images
    apart best: what the classes are decides what gains can do (`method.md`, section 8).
    """
    objective = Objective(normalized=False, loss=rows.classifier.labelling.loss_name)
    share = _share_of_images(rows)
    strength, left = _gains_path(rows, objective, share)
    return with_gains(rows.classifier, rows.seen, objective, strength, left, share)


def with_gains(
    given: ZeroShotClassifier,
    seen: Coordinates | CoordinateStore | Stores,
    objective: Objective,
    strength: float,
    left: LeftOut,
    share: float = 0.0,
) -> Outcome:
    """The outcome of gains at a strength, the classifier's model left as it is.

    Args:
        given: whose model has the adapter.
        seen: the images, in memory or on disk.
        objective: but for its strength.
        strength: of its ridge.
        left: what was said of images left out.
        share: β of the images' means in the class embeddings.
    """
    classifier = copy(given)  # the bias of several labels is the outcome's, not ours
    if share:
        readout = torch.cat([part.readout for part in seen.parts])
        classifier = classifier.with_images(readout, seen.labels, share=share)
    target = gains_of(classifier.model)
    before = target.detach().clone()
    try:
        fit = solve_gains(classifier, seen, objective=replace(objective, strength=strength))
    finally:
        with torch.no_grad():
            target.copy_(before)
    return Outcome(
        "gains",
        left,
        fit.gains.numel(),
        gains=fit.gains.detach().cpu(),
        bias=classifier.logit_bias,
        embeddings=classifier.class_embeddings if share else None,
        strength=strength,
        notes=(SHARED.format(f"{100 * share:.0f} %"),) if share else (),
        share=share,
    )


def _share_of_images(rows: Rows) -> float:
    """β of the class embeddings; 0 where classes are means already, or have none left out."""
    if rows.means or rows.classifier.multi_label or rows.fold is None:
        return 0.0
    inside = [rows.labels[rows.fold != number] for number in rows.fold.unique().tolist()]
    if any(len(labels.unique()) < rows.class_count for labels in inside):
        return 0.0  # a class that lies in one fold alone has no mean without it
    embeddings = rows.classifier.class_embeddings
    groups = rows.fold if rows.groups is None else rows.groups
    return blend(embeddings, rows.seen.readout, rows.labels, rows.class_count, groups=groups).share


def _gains_path(rows: Rows, objective: Objective, share: float) -> tuple[float, LeftOut]:
    """The strength of the least left-out log-loss, and the left-out predictions there."""
    if rows.fold is None:
        return STRENGTHS[0], _finished(rows, rows.zero_shot)
    pairs, starts = [], []
    ones = torch.ones_like(gains_of(rows.classifier.model).detach().cpu())
    for number in rows.fold.unique().tolist():
        inside = (rows.fold != number).nonzero().flatten()
        outside = (rows.fold == number).nonzero().flatten()
        seen, classifier = rows.seen.rows(inside), rows.classifier
        if share:
            classifier = classifier.with_images(seen.readout, seen.labels, share=share)
        problem = GainProblem(classifier, seen, objective)
        pairs.append((problem, classifier, rows.seen.rows(outside), outside))
        starts.append((ones, 0.0))
    tried: list[tuple[float, float, LeftOut]] = []
    for strength in STRENGTHS:
        logits = torch.empty_like(rows.zero_shot)
        for place, (problem, classifier, held_out, outside) in enumerate(pairs):
            gains, bias = starts[place]
            this = problem.with_strength(strength)
            gains, bias, _ = lbfgs(this, gains, bias, _COARSE, 100, False)
            starts[place] = gains, bias
            part = classifier.scaled_cosines(held_out.adapted(gains)).cpu() + bias
            logits[outside] = part.to(logits.dtype)
        left = _finished(rows, logits)
        tried.append((left.log_loss, strength, left))
        best = min(range(len(tried)), key=lambda place: tried[place][0])
        if len(tried) - 1 - best >= _PATIENCE:
            break
    _, strength, left = min(tried, key=lambda one: one[0])
    return strength, left


def _title(what: str, features: Features, kinds: tuple[str, ...]) -> str:
    if features == "embedding":
        return f"{what} on the embedding (a linear probe)"
    return f"{what} on the coordinates{' of heads' if kinds else ''}"


def _ridge(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    def fit(rows: Rows) -> Outcome:
        values, columns = rows.features(features, kinds), rows.columns(kinds)
        common: dict[str, Any] = {
            "zero_shot": rows.zero_shot,
            "class_weights": rows.class_weights,
            "residual": False if rows.by_labels else None,
        }
        common |= {"groups": rows.groups, "folds": rows.fold}
        choice = choose_ridge({name: values}, rows.labels, rows.class_count, **common)
        done = choice.fit
        left = done.left_out if done.by_folds is None else done.by_folds
        head = done.head
        if features == "coordinates":
            head = spread(head, columns, rows.seen.coordinates.shape[1])
        return Outcome(
            name,
            left,
            done.parameter_count,
            head=_trained(head, features, name, done.left_out),
            strength=float(done.alpha.median()),
            notes=done.notes,
            power=done.power,
            settings=done.settings,
            columns=columns if features == "coordinates" else None,
        )

    return Method(_title("ridge", features, kinds), fit, ridge=(features, kinds))


def _logistic(name: str, features: Features, kinds: tuple[str, ...] = ()) -> Method:
    def fit(rows: Rows) -> Outcome:
        values = rows.features(features, kinds)
        options: dict[str, Any] = {"groups": rows.groups, "class_weights": rows.class_weights}
        start = fit_ridge(
            values, rows.labels, rows.class_count, zero_shot=rows.zero_shot, **options
        ).head
        done = fit_logistic(
            values,
            rows.labels,
            rows.class_count,
            zero_shot=rows.zero_shot,
            start=start,
            tolerance=1e-5,
            **options,
        )
        head = done.head
        if features == "coordinates":
            head = spread(head, rows.columns(kinds), rows.seen.coordinates.shape[1])
        return Outcome(
            name,
            done.left_out,
            done.parameter_count,
            head=_trained(head, features, name, done.left_out),
            strength=done.strength,
        )

    return Method(_title("logistic regression", features, kinds), fit)


def _discriminant(rows: Rows) -> Outcome:
    values = rows.features("embedding")
    options: dict[str, Any] = {"class_weights": rows.class_weights}
    done = fit_discriminant(
        values, rows.labels, rows.class_count, zero_shot=rows.zero_shot, **options
    )
    left = done.left_out
    if rows.fold is not None:

        def outside(kept: Tensor) -> Tensor:
            some = fit_discriminant(values[kept], rows.labels[kept], rows.class_count, **options)
            return replace(some.head, temperature=1.0).logits(values[~kept].double())

        try:
            left = _finished(rows, across_folds(outside, rows.fold))
        except ResiDualError:  # a class lies in one fold alone: leave-one-out will do
            left = done.left_out
    return Outcome(
        "discriminant",
        left,
        done.parameter_count,
        head=_trained(done.head, "embedding", "discriminant", done.left_out),
        strength=done.shrinkage,
    )


METHODS: dict[str, Method] = {
    "zero-shot": Method("texts (or class means) alone", _zero_shot),
    "gains": Method("one gain per component", _gains),
    "ridge-embedding": _ridge("ridge-embedding", "embedding"),
    "logistic-embedding": _logistic("logistic-embedding", "embedding"),
    "discriminant": Method("discriminant analysis on the embedding", _discriminant, several=False),
    "ridge-heads": _ridge("ridge-heads", "coordinates", ("head",)),
    "ridge": _ridge("ridge", "coordinates"),
    "logistic": replace(_logistic("logistic", "coordinates"), tried=False),
}
"""By name, in the order of a table."""


def _trained(head: ClassHead, features: Features, name: str, left_out: LeftOut) -> TrainedHead:
    return TrainedHead(head.to(torch.float32), features, name, scores_of(left_out))


def _text_logits(classifier: ZeroShotClassifier, readout: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.logits(readout).cpu()


def _without_own_fold(classifier: ZeroShotClassifier, seen: Coordinates, fold: Tensor) -> Tensor:
    """z of class means that have not seen the image's fold (N, C)."""
    found = torch.zeros(len(seen), len(classifier.class_names))
    unit = functional.normalize(seen.readout.float(), dim=1)
    for number in fold.unique().tolist():
        inside, outside = fold != number, fold == number
        present = seen.labels[inside].unique()
        names = [classifier.class_names[label] for label in present.tolist()]
        labels = torch.searchsorted(present, seen.labels[inside])
        means = classifier.class_embeddings.cpu().float().clone()
        means[present] = class_means_of(seen.readout[inside], labels, names).float()
        found[outside] = classifier.logit_scale * unit[outside] @ means.T
    return found


def _finished(rows: Rows, logits: Tensor) -> LeftOut:
    """Left-out logits as those of the other methods: with a temperature of their own."""
    data = checked(
        torch.zeros(len(logits), 1), rows.labels, rows.class_count, class_weights=rows.class_weights
    )
    how: How | None = "none" if rows.fold is None else None
    leaving = leaving_of(rows.labels, rows.class_count, rows.fold, how)
    _, _, left = finish(logits.double(), data, leaving.how, leaving.known)
    return left
