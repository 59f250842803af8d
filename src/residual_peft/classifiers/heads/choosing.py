"""Which features, and how they are scaled, by the log-loss of images left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, labelling_in
from ...errors import ResiDualError
from .left_out import LeftOut
from .ridge import RidgeFit, fit_ridge

TIE = 0.25
"""Standard errors of the paired difference within which two log-losses are a tie.

At a whole one, 2 and 4 images of each class of handwriting choose the embedding too often, which
costs one to two points; at a quarter the choice is as good as that of the least loss.
"""
POWERS = (0.5, 1.0, 0.0)


@dataclass(frozen=True)
class Candidate:
    """One way to tell classes apart."""

    name: str  # to be told by
    left_out: LeftOut  # what it says of images left out, of the same images for all candidates
    parameter_count: int  # numbers trained


def fewest_as_good(
    candidates: Sequence[Candidate], weights: Tensor | None = None, tie: float = TIE
) -> int:
    """The place of the candidate of the least left-out log-loss, or of fewer numbers that ties.

    Only images count, weighted by `weights` (N,), whose class every candidate knew without them;
    the first one where there is none.
    """
    known = _known(candidates)
    if not known.any():
        return 0
    losses = torch.stack([candidate.left_out.losses[known] for candidate in candidates])
    share = torch.ones(len(known)) if weights is None else weights
    share = share[known].double() / share[known].double().sum()
    means = losses @ share
    ties = _ties(losses, share, tie)
    return min(ties, key=lambda place: (candidates[place].parameter_count, float(means[place])))


def best_recall(candidates: Sequence[Candidate], tie: float = TIE) -> int:
    """The place of the candidate of the best mean per-class recall of left-out images.

    Recall counts images, and with rare classes many candidates have nearly the same: among those
    that tie the log-loss decides, each class counting alike there, too (`fewest_as_good`). For one
    label per image.
    """
    known = _known(candidates)
    if not known.any():
        return 0
    labels = candidates[0].left_out.labels
    counts = ONE_LABEL.counts(labels[known], int(labels.max()) + 1)
    each = 1 / counts.clamp_min(1).double()[labels]  # their sum over images is that of recalls
    right = [ONE_LABEL.right(one.left_out.logits, labels)[known] for one in candidates]
    places = _ties(-torch.stack(right), each[known] / each[known].sum(), tie)
    return places[fewest_as_good([candidates[place] for place in places], each, tie)]


def _known(candidates: Sequence[Candidate]) -> Tensor:
    """Images whose class every candidate knew without them (N,), the same images of all."""
    if not candidates:
        raise ResiDualError("wanted at least one way to tell classes apart, got none.")
    first = candidates[0].left_out.labels
    for candidate in candidates:
        if not torch.equal(candidate.left_out.labels, first):
            raise ResiDualError(
                f"wanted what {candidate.name} says of the images that {candidates[0].name} was "
                "asked for, got others: compare candidates on the same rows."
            )
    return torch.stack([candidate.left_out.known for candidate in candidates]).all(0)


def _ties(losses: Tensor, share: Tensor, tie: float) -> list[int]:
    """Candidates whose mean of losses (M, n) is within `tie` standard errors of the least."""
    means = losses @ share
    best = int(means.argmin())
    excess = means - means[best]
    variance = (losses - losses[best] - excess.unsqueeze(1)).square() @ share.square()
    rounding = 1e-12  # of two sums of the same numbers, which a product need not add up alike
    return (excess <= tie * variance.sqrt() + rounding).nonzero().flatten().tolist()


@dataclass(frozen=True)
class RidgeChoice:
    """A ridge, and the features and p that it was chosen with."""

    name: str  # of the features
    fit: RidgeFit  # on all images
    tried: tuple[Candidate, ...]  # everything it was chosen from
    images: int  # how many images the choice was made on


def choose_ridge(
    features: Mapping[str, Tensor],
    labels: Tensor,
    class_count: int,
    *,
    powers: Sequence[float] = POWERS,
    at_most: int = 2000,
    **options: Any,
) -> RidgeChoice:
    """Ridge on the features, by name, and with the p, that do best on images left out.

    The first features and the first power are taken where nothing can be left out. Of more images
    than `at_most` the choice is made on a draw by class; the fit is then made on all of them. The
    options are those of `fit_ridge`, but for `power` and `scale`.
    """
    if not features or not powers:
        raise ResiDualError("wanted features and powers to try, got none.")
    rows = some_rows(labels, class_count, at_most)
    part = options if rows is None else _part(options, rows)
    few = labels if rows is None else labels[rows]
    keys = [(name, power) for name in features for power in powers]
    fits, tried = [], []
    for name, power in keys:
        values = features[name] if rows is None else features[name][rows]
        fit = fit_ridge(values, few, class_count, power=power, **part)
        tried.append(Candidate(f"{name}, p = {power:g}", fit.left_out, fit.parameter_count))
        fits.append(fit)
    weights = options.get("class_weights")
    if weights is not None:
        weights = torch.as_tensor(weights, dtype=torch.float64).cpu()[few.cpu().long()]
    best = fewest_as_good(tried, weights)
    name, power = keys[best]
    fit = fits[best]
    if rows is not None:
        fit = fit_ridge(features[name], labels, class_count, power=power, **options)
    return RidgeChoice(name, fit, tuple(tried), len(few))


def some_rows(labels: Tensor, class_count: int, at_most: int) -> Tensor | None:
    """Rows of a draw in which no class has less than its share, or two images if it has two."""
    count = len(labels)
    if count <= at_most:
        return None
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=generator)
    first = labelling_in(labels).first_rows(labels, order, class_count, (at_most, count))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.cat(first)] = True
    rest = order[~kept[order]]
    kept[rest[: max(0, at_most - int(kept.sum()))]] = True
    return kept.nonzero().flatten()


def _part(options: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """The options for some of the images: what has one entry per image is cut."""
    part = dict(options)
    for name in ("zero_shot", "groups", "folds"):
        value = part.get(name)
        if isinstance(value, Tensor):
            part[name] = value[rows]
        elif value is not None:
            part[name] = [value[row] for row in rows.tolist()]
    return part
