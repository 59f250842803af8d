"""What was fitted on a draw, fitted on all images of stores that are larger than memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..bases.processes import Processes
from ..classifiers.heads import (
    HeadStatistics,
    RidgeSettings,
    calibrated,
    fit_statistics,
    left_out_errors,
)
from ..classifiers.heads.choosing import some_rows
from ..classifiers.heads.head import FittedHead
from ..classifiers.heads.images import duplicate_groups
from ..classifiers.trained_head import Features, embedding_features
from ..classifiers.zero_shot import ZeroShotClassifier
from .coordinates import Coordinates, in_chunks
from .methods import METHODS, Outcome, Rows, columns_of, with_gains
from .methods.method import of_head
from .objectives import Objective
from .store import CoordinateStore, Stores

IN_MEMORY = 2**31
"""Bytes of coordinates in float32 up to which all are loaded; solvers take some times as much."""
MOST_COLUMNS = 8192
"""K up to which a ridge is fitted from K × K sums: 0.5 GB each, some of them, and minutes."""
SECOND = 10_000  # images of a second pass, which chooses the strength and calibrates
CHUNK = 1024


def statistics_of(
    data: Coordinates | CoordinateStore | Stores,
    class_count: int,
    *,
    features: Features = "coordinates",
    columns: Tensor | None = None,
    class_weights: Tensor | None = None,
    per_class: bool = False,
    across_processes: bool = False,
) -> HeadStatistics:
    """The sums that a ridge is fitted from, in one pass over coordinates in memory or on disk.

    Memory: K × K numbers and one chunk of images, however many there are.

    Args:
        data: labelled images.
        class_count: C.
        features: what is summed of them: coordinates, or the embedding.
        columns: which of these; None for all.
        class_weights: how much an image of each class counts (C,).
        per_class: as for `HeadStatistics`.
        across_processes: under `torch.distributed`, each process sums every so-many-th shard of the
            same store, and all end with the sums of all. Every process has to call it.

    Raises:
        ResiDualError: labels that are no class; across processes, in all of them.
    """
    processes = Processes.running() if across_processes else Processes()
    width = data.parts[0].readout.shape[1] if features == "embedding" else len(data.state.shift)
    kept = torch.arange(width) if columns is None else columns
    sums = HeadStatistics(len(kept), class_count, per_class=per_class)
    with processes.in_step():
        for some in in_chunks(data.parts[processes.rank :: processes.world], CHUNK):
            weights = None if class_weights is None else class_weights.double()[some.labels]
            sums.add(_features(some, features, columns), some.labels, weights)
    return sums.across_processes() if across_processes else sums


def draw_of(
    classifier: ZeroShotClassifier,
    data: Stores,
    at_most: int,
    *,
    means: bool = False,
    balanced: bool = False,
    by_labels: bool = True,
    groups: Tensor | None = None,
) -> Rows:
    """A draw of so many images, of every class, in memory; the options are those of `Rows.of`."""
    index = some_rows(data.labels, len(classifier.class_names), at_most)
    part = data.load() if index is None else data.rows(index)
    weights = None
    if balanced:
        weights = classifier.labelling.class_weights(data.labels, len(classifier.class_names))
    options: dict[str, Any] = {"means": means, "class_weights": weights, "by_labels": by_labels}
    own = groups if groups is None or index is None else groups[index]
    return Rows.of(classifier, part, groups=own, **options)


def fit_all(
    outcome: Outcome,
    rows: Rows,
    data: Stores,
    *,
    means: bool = False,
    groups: Tensor | None = None,
    in_memory: int | None = None,
) -> Outcome:
    """Fit on all images what was chosen on `rows`, a draw of them.

    Gains are solved for from the store, and a ridge from K × K sums of it, its strength, text
    weight and temperature from exact left-out predictions of up to `SECOND` images, copies of
    others aside. What needs the rows themselves, and a ridge of more than `MOST_COLUMNS` columns,
    with class weights, groups, several labels or copies for the most part, is fitted on as many as
    may be in memory; a note says how many.

    Args:
        outcome: of the draw.
        rows: the draw.
        data: all images.
        means: whether the classes are the means of these images.
        groups: of all images, as for `Rows.of`; sums would leave images out singly.
        in_memory: bytes of coordinates that may be loaded; `IN_MEMORY` when None.
    """
    in_memory = IN_MEMORY if in_memory is None else in_memory
    method = METHODS[outcome.method]
    if outcome.method == "zero-shot":
        return outcome
    if outcome.method == "gains":
        objective = Objective(normalized=False, loss=rows.classifier.labelling.loss_name)
        assert outcome.strength is not None
        left, share, scale = outcome.left_out, outcome.share, outcome.logit_scale
        return with_gains(rows.classifier, data, objective, outcome.strength, left, share, scale)
    each = 4 * len(data.state.shift)
    fitting = max(2 * rows.class_count, in_memory // each)
    balanced = rows.class_weights is not None
    singly = groups is None and not balanced and data.labels.ndim == 1
    if method.ridge is not None and singly:
        features, kinds = method.ridge
        columns = columns_of(data.state, kinds) if features == "coordinates" else None
        width = data.readout.shape[1] if columns is None else len(columns)
        if width <= MOST_COLUMNS:
            at_most = min(SECOND, fitting)
            alone = _without_copies(data, rows.class_count, at_most)
            second = draw_of(rows.classifier, data, at_most, means=means)
            if 2 * len(alone) > len(second.labels):
                return _ridge_from_sums(outcome, features, kinds, (second, alone), data)
    more = draw_of(rows.classifier, data, fitting, means=means, balanced=balanced, groups=groups)
    done = method.run(more)
    note = (
        f"{method.title} was fitted on {len(more.labels):,} of {len(data):,} images, a draw of "
        f"every class: more coordinates do not fit into {in_memory / 2**30:.2g} GiB. Fewer "
        "components per unit let it use more."
    )
    return replace(done, notes=(*done.notes, note))


def _without_copies(data: Stores, class_count: int, at_most: int) -> Tensor:
    """Which rows of `draw_of` so many have no copy among all images (n,).

    Of an image that is left out by itself its copies stay in: what is said of it is too good.
    """
    _, number, copies = duplicate_groups(data.readout).unique(
        return_inverse=True, return_counts=True
    )
    index = some_rows(data.labels, class_count, at_most)
    alone = copies[number] == 1
    return (alone if index is None else alone[index]).nonzero().flatten()


def _ridge_from_sums(
    drawn: Outcome,
    features: Features,
    kinds: tuple[str, ...],
    draw: tuple[Rows, Tensor],
    data: Stores,
) -> Outcome:
    """`draw` is of images that are left out, and which of its rows are."""
    second, alone = draw
    columns = second.columns(kinds) if features == "coordinates" else None
    sums = statistics_of(data, second.class_count, features=features, columns=columns)
    fit = fit_statistics(sums, power=drawn.power)
    errors = left_out_errors(fit, _batches(second, alone, features, columns))
    best = int(errors.sum(1).argmin())
    fit = fit.at(float(fit.alphas[best]))
    head, left = calibrated(fit, _batches(second, alone, features, columns))
    note = (
        f"fitted on all {len(data):,} images from their sums; strength and calibration are of "
        f"{len(alone):,} of them, each left out by itself."
    )
    more: dict[str, Any] = {
        "notes": (note,),
        "power": drawn.power,
        "settings": RidgeSettings.of(fit.alpha, head.scale),
        "strength": float(fit.alpha[0]),
    }
    return of_head(drawn.method, second, features, FittedHead(head, left), kinds, **more)


def _batches(
    rows: Rows, index: Tensor, features: Features, columns: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for part in index.split(CHUNK):
        some = rows.data.rows(part)
        yield _features(some, features, columns), some.labels, rows.zero_shot[part]


def _features(part: Coordinates, features: Features, columns: Tensor | None) -> Tensor:
    if features == "embedding":
        found = embedding_features(part.readout)
    else:
        found = part.coordinates.float()
    return found if columns is None else found[:, columns]
