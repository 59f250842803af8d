"""One gain per component: the linear objective, its ridge by what it says of left-out folds."""

from copy import copy
from dataclasses import replace

import torch

from ...classifiers.cosines import LARGEST_LOGIT_SCALE
from ...classifiers.heads import LeftOut
from ...classifiers.heads.blend import blend
from ...classifiers.zero_shot import ZeroShotClassifier
from ...tuner import gains_of
from ..coordinates import Coordinates
from ..objectives import GainProblem, Objective
from ..quasi_newton import lbfgs, solve_gains
from ..store import CoordinateStore, Stores
from ..strengths import STRENGTHS
from .method import Method, Outcome, tempered
from .rows import Rows

_ALONE = (
    "classes are the means of their images in place of texts, which told left-out images apart "
    "better."
)
_BLENDED = (
    "classes are their texts with {} of the means of their images, which told left-out images "
    "apart better than texts alone."
)
_PATIENCE = 2  # weaker ridges tried after the best one
_COARSE = 1e-3  # gradient of fits that are only compared


def _gains(rows: Rows) -> Outcome:
    """The linear objective, its ridge chosen by what it says of folds that it did not see.

    Classes are texts, means of their images, or a blend of both, whichever tells left-out images
    apart best: what the classes are decides what gains can do (`method.md`, section 8).
    """
    objective = Objective(normalized=False, loss=rows.classifier.labelling.loss_name)
    share = _share_of_images(rows)
    strength, temperature, left = _path(rows, objective, share)
    scale = min(temperature * rows.classifier.logit_scale, LARGEST_LOGIT_SCALE)
    return with_gains(rows.classifier, rows.data, objective, strength, left, share, scale)


def _shared(share: float) -> tuple[str, ...]:
    """What is said of the share of images' means in the classes."""
    if not share:
        return ()
    return (_ALONE if share == 1 else _BLENDED.format(f"{100 * share:.0f} %"),)


def with_gains(
    original: ZeroShotClassifier,
    data: Coordinates | CoordinateStore | Stores,
    objective: Objective,
    strength: float,
    left: LeftOut,
    share: float = 0.0,
    logit_scale: float | None = None,
) -> Outcome:
    """The outcome of gains at a strength of the ridge, the given classifier left as it is.

    `left` is what was said of images left out, `share` β of the images' means in the class
    embeddings, `logit_scale` as sure as left-out images say, the classifier's where None.
    """
    classifier = copy(original)  # the bias of several labels is the outcome's, not ours
    if share:
        classifier = classifier.with_images(data.readout, data.labels, share=share)
    target = gains_of(classifier.model)
    before = target.detach().clone()
    try:
        fit = solve_gains(classifier, data, objective=replace(objective, strength=strength))
    finally:
        with torch.no_grad():
            target.copy_(before)
    return Outcome(
        "gains",
        left,
        fit.gains.numel(),
        gains=fit.gains.detach().cpu(),
        bias=classifier.logit_bias,
        logit_scale=logit_scale,
        embeddings=classifier.class_embeddings if share else None,
        strength=strength,
        notes=_shared(share),
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
    return blend(embeddings, rows.data.readout, rows.labels, rows.class_count, groups=groups).share


def _path(rows: Rows, objective: Objective, share: float) -> tuple[float, float, LeftOut]:
    """The strength of the least left-out log-loss; temperature and left-out predictions there."""
    if rows.fold is None:
        return STRENGTHS[0], 1.0, tempered(rows, rows.zero_shot)[1]
    pairs = []
    ones = torch.ones_like(gains_of(rows.classifier.model).detach().cpu())
    for number in rows.fold.unique().tolist():
        outside = rows.fold == number
        data, classifier = rows.data.rows(~outside), rows.classifier_without(number)
        if share:
            classifier = classifier.with_images(data.readout, data.labels, share=share)
        problem = GainProblem(classifier, data, objective)
        pairs.append((problem, classifier, rows.data.rows(outside), outside))
    starts = [(ones, 0.0)] * len(pairs)
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
        temperature, left = tempered(rows, logits)
        tried.append((strength, temperature, left))
        best = min(range(len(tried)), key=lambda place: tried[place][2].log_loss)
        if len(tried) - 1 - best >= _PATIENCE:
            break
    return tried[best]


GAINS = Method("one gain per component", _gains)
