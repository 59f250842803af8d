"""From left-out predictions to the last two numbers of a classifier, a and τ."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .calibrating import calibrate
from .images import Images
from .left_out import FOLDS, How, LeftOut, leaving_of, stratified_folds


def log_losses(logits: Tensor, images: Images) -> Tensor:
    """Cross-entropy of each image (N,); over several labels the sum of the sigmoids'."""
    return images.labelling.losses(logits, images.labels)


def mean_loss(logits: Tensor, images: Images, known: Tensor) -> float:
    """Mean of `log_losses` over images that can be told right, weighted as they are."""
    weights = images.weights * known
    return float((weights @ log_losses(logits, images)) / weights.sum())


def text_alone(images: Images) -> float:
    """a of `a z` by itself, as sure as it may be, for one label per image: z has seen no image."""
    if images.zero_shot is None:
        return 0.0
    nothing = torch.zeros_like(images.zero_shot)
    return calibrate(nothing, images.labels, images.weights, images.zero_shot).text_weight


def finish(
    logits: Tensor,
    images: Images,
    how: How,
    known: Tensor,
    *,
    with_text: bool = True,
    temperature: float = 1.0,
) -> tuple[float, float, LeftOut]:
    """a and τ for `a z + τ logits`, and the left-out predictions with both applied.

    With several labels a = 0 and τ = 1: their sigmoids are fitted as they are.

    Args:
        logits: of each image by a fit without it (N, C).
        images: with zero-shot logits z where text may count.
        how: who was left out with whom.
        known: images that can be told right without their own (N,); the others say nothing.
        with_text: False keeps a at 0.
        temperature: τ where no image is known; a is then that of the text alone.
    """
    text = images.zero_shot if with_text else None
    if images.labelling.multi_label:
        return 0.0, 1.0, LeftOut(logits, images.labels, how, known)
    if known.any():
        seen = None if text is None else text[known]
        found = calibrate(logits[known], images.labels[known], images.weights[known], seen)
        text_weight, temperature = found.text_weight, found.temperature
    else:
        text_weight = text_alone(images) if with_text else 0.0
    final = temperature * logits
    if text is not None:
        final = final + text_weight * text
    return text_weight, temperature, LeftOut(final, images.labels, how, known)


def part_of(images: Images, rows: Tensor) -> Images:
    """Some of the images, (N,) as True and False; their weights stay as they are."""
    parts = {name: part[rows] for name, part in vars(images).items() if part is not None}
    return replace(images, **parts)


def folds_of(
    images: Images, groups: Tensor | None, folds: int = FOLDS
) -> tuple[Tensor | None, Tensor, How]:
    """The fold of each image (N,), None where folds are no use; who is known; what to call it."""
    classes = images.targets.shape[1]
    fold = stratified_folds(images.labels, folds=folds, groups=groups)
    if fold is None:
        return None, torch.zeros(len(images.labels), dtype=torch.bool), "none"
    known = leaving_of(images.labels, classes, groups=fold).known
    return fold, known, "fold" if groups is None else "group"


def across_folds(fit: Callable[[Tensor], Tensor], fold: Tensor) -> Tensor:
    """Left-out predictions (N, …): of each fold by `fit`, which gets the rows inside as bool."""
    found: Tensor | None = None
    for number in fold.unique().tolist():
        outside = fold == number
        some = fit(~outside)
        if found is None:
            found = some.new_empty(len(fold), *some.shape[1:])
        found[outside] = some
    assert found is not None
    return found


def best_across_folds(
    fit: Callable[[Tensor], Tensor], fold: Tensor, images: Images, known: Tensor
) -> tuple[int, Tensor]:
    """Of the S left-out scores that `fit` gives (n, S, C), the number of the best, and these."""
    scores = across_folds(fit, fold)
    losses = [mean_loss(found, images, known) for found in scores.unbind(1)]
    best = min(range(len(losses)), key=losses.__getitem__)
    return best, scores[:, best]
