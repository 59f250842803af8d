"""Features and labels of the images a head is fitted on, checked; what is odd about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, Labelling, check_same, labelling_in
from ...errors import ResiDualError, counted

ADVICE = "fit the head on the classes that have images; others are told by their text alone."
ROUNDING = 1e-5
"""How far copies may differ, as a share of their length."""
PROJECTIONS = 3
AT_ONCE = 2**14  # pairs that are compared at a time


@dataclass(frozen=True)
class Images:
    """What a head is fitted on, in float64 on the CPU."""

    features: Tensor  # (N, K)
    labels: Tensor  # (N,), or with several labels zeros and ones (N, C)
    targets: Tensor  # Y (N, C), zeros and ones
    weights: Tensor  # of the images, of mean 1 (N,)
    zero_shot: Tensor | None = None  # z (N, C), where given

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_in(self.labels)


def checked(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    zero_shot: Tensor | None = None,
    class_weights: Tensor | Sequence[float] | None = None,
) -> Images:
    """The images, or what is wrong with them.

    Raises:
        ResiDualError: shapes that do not go together, no image, no feature, numbers that are not
            finite, labels that are no class, a class without images, fewer than two classes,
            weights that are not above 0 or that are given for several labels.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ResiDualError(
            f"wanted features (N, K) of the images with K at least 1, got {tuple(features.shape)}: "
            "a basis without components has none."
        )
    labels, count = labels.detach().cpu(), len(features)
    if labels.ndim not in (1, 2) or len(labels) != count or count == 0:
        raise ResiDualError(
            f"wanted a label for each of {count} images and at least one image, got labels "
            f"{tuple(labels.shape)}."
        )
    labelling = labelling_in(labels)
    labelling.check(labels, class_count)
    if class_count < labelling.fewest_classes:
        raise ResiDualError(f"wanted at least two classes to tell apart, got {class_count}.")
    labels = labels.long()
    targets = labelling.targets(labels, class_count)
    absent = (targets.sum(0) == 0).nonzero().flatten().tolist()
    if absent:
        names = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        raise ResiDualError(
            f"wanted images of each of {class_count} classes, got none of class {names} among "
            f"{len(labels)} images: {ADVICE}"
        )
    features = _finite(features, "features")
    if zero_shot is not None:
        if zero_shot.shape != targets.shape:
            raise ResiDualError(
                f"wanted zero-shot logits {tuple(targets.shape)}, one row per image, got "
                f"{tuple(zero_shot.shape)}."
            )
        zero_shot = _finite(zero_shot, "zero-shot logits")
    weights = _weights(class_weights, labels, class_count)
    return Images(features, labels, targets, weights, zero_shot)


def _finite(values: Tensor, what: str) -> Tensor:
    values = values.detach().cpu().double()
    bad = (~torch.isfinite(values).all(1)).nonzero().flatten()
    if len(bad):
        raise ResiDualError(
            f"wanted finite {what}, got nan or infinity for {len(bad)} of {len(values)} images, "
            f"the first of them row {int(bad[0])}: take those images out."
        )
    return values


def _weights(
    class_weights: Tensor | Sequence[float] | None, labels: Tensor, class_count: int
) -> Tensor:
    if class_weights is None:
        return torch.ones(len(labels), dtype=torch.float64)
    check_same(ONE_LABEL, labelling_in(labels), "leave the class weights out")
    each = above_zero(class_weights, class_count, "weight", "classes")[labels]
    return each / each.mean()


def above_zero(values: Tensor | Sequence[float], count: int, one: str, of: str) -> Tensor:
    """Numbers (count,) in float64 on the CPU; refused unless all are finite and above 0."""
    found = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if found.shape != (count,) or not (torch.isfinite(found) & (found > 0)).all():
        raise ResiDualError(
            f"wanted a {one} above 0 for each of {count} {of}, got {tuple(found.shape)} with a "
            f"least one of {float(found.min()):g}."
        )
    return found


def checked_batch(
    features: Tensor, labels: Tensor, weights: Tensor | None, columns: int, class_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Some of the images, for sums: features (B, K), targets (B, C) and weights (B,) in float64."""
    x, labels = features.detach().cpu().double(), labels.detach().cpu()
    if x.ndim != 2 or x.shape[1] != columns:
        raise ResiDualError(
            f"wanted features (B, {columns}) as in these statistics, got {tuple(x.shape)}: these "
            "are of another basis, or of other units."
        )
    if len(labels) != len(x) or not torch.isfinite(x).all():
        raise ResiDualError(
            f"wanted finite features and a label for each of {len(x)} images, got {len(labels)} "
            f"labels and {int((~torch.isfinite(x)).sum())} numbers that are not finite."
        )
    labelling = labelling_in(labels)
    try:
        labelling.check(labels, class_count)
    except ResiDualError as error:
        raise ResiDualError(f"{error} add_class() makes room for a new class.") from None
    targets = labelling.targets(labels, class_count)
    w = torch.ones(len(x)).double() if weights is None else weights.detach().cpu().double()
    if w.shape != (len(x),) or not (torch.isfinite(w) & (w > 0)).all():
        raise ResiDualError(f"wanted a weight above 0 for each of {len(x)} images, got others.")
    return x, targets, w


def balanced_weights(labels: Tensor, class_count: int) -> Tensor:
    """Class weights (C,) under which all classes count the same: N / (C n_k), as scikit-learn's."""
    return ONE_LABEL.balanced(ONE_LABEL.counts(labels, class_count), len(labels))


def duplicate_groups(features: Tensor) -> Tensor:
    """A number per image (N,) that equal rows of features share; each other image has its own.

    Rows are compared in float32: copies of one picture that were encoded in two batches may differ
    by rounding, `ROUNDING` of their length here. Copies of copies are copies, too. Only rows that
    some random projections cannot tell apart are compared: a distance is no less along any line.
    """
    # not needed to load and run an adapter, so not at the module's top
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = features.detach().cpu().float()
    if len(rows) < 2:
        return torch.arange(len(rows))
    margins = ROUNDING * rows.norm(dim=1) + 1e-12
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(rows.shape[1], PROJECTIONS, generator=generator, dtype=rows.dtype)
    keys = rows @ (probes / probes.norm(dim=0))
    first, radius = _stand_ins(rows, keys, margins)
    one, other = _near_pairs(rows, keys, margins, first, radius)
    ends = torch.cat([torch.arange(len(rows)), one]), torch.cat([first, other])
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(len(rows), len(rows)))
    found = connected_components(graph, directed=False)[1]
    _, lowest, number = np.unique(found, return_index=True, return_inverse=True)
    return torch.from_numpy(lowest[number])


def _stand_ins(rows: Tensor, keys: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of each row that stands for it, or itself (N,); how far off those are at most (N,).

    Thousands of copies of one picture would be millions of pairs: most share a cell of a grid over
    the projections, and the first row in it stands for those that are indeed near.
    """
    cells = (keys / (margins / 2).unsqueeze(1)).floor().long().numpy()
    mixed = cells @ np.array([1, 0x9E3779B97F4A7C1, 0x2545F4914F6CDD1], dtype=np.int64)
    _, lowest, number = np.unique(mixed, return_index=True, return_inverse=True)
    first, own = torch.from_numpy(lowest[number]), torch.arange(len(rows))
    others = (first != own).nonzero().flatten()
    apart = _distances(rows, first[others], others)
    near = apart <= margins[first[others]]
    first[others[~near]] = others[~near]
    radius = torch.zeros(len(rows))
    return first, radius.scatter_reduce_(0, first[others[near]], apart[near], "amax")


def _near_pairs(
    rows: Tensor, keys: Tensor, margins: Tensor, first: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Both of all pairs (P,) of rows that stand for themselves which copies may join.

    A stranger may lie between two copies along a projection: pairs are looked at as far apart in
    the order as the projection allows. Rows that others lie about by a radius are nearer by it.
    """
    kept = (first == torch.arange(len(rows))).nonzero().flatten()
    order = kept[keys[kept, 0].argsort()]
    ordered = keys[order]
    # a tenth more, as projections are rounded themselves
    reach = 1.1 * margins[order] * (1 + 2 * (radius / margins).nan_to_num().max())
    ones, others = [torch.arange(0)], [torch.arange(0)]
    place, step = torch.arange(len(order)), 0
    while len(place):
        step += 1
        place = place[place < len(order) - step]
        place = place[ordered[place + step, 0] - ordered[place, 0] <= reach[place]]
        gaps = (ordered[place + step, 1:] - ordered[place, 1:]).abs()
        able = place[(gaps <= reach[place].unsqueeze(1)).all(1)]
        one, other = order[able], order[able + step]
        near = _distances(rows, one, other) <= margins[one] + radius[one] + radius[other]
        ones.append(one[near])
        others.append(other[near])
    return torch.cat(ones), torch.cat(others)


def _distances(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Between rows by their numbers (P,), some at a time."""
    parts = zip(one.split(AT_ONCE), other.split(AT_ONCE), strict=True)
    return torch.cat([(rows[a] - rows[b]).norm(dim=1) for a, b in parts])


def oddities(images: Images, grouped: bool) -> tuple[str, ...]:
    """What to tell the user of images that make left-out predictions doubtful."""
    features, labels = images.features, images.labels
    if bool((features == features[0]).all()) and len(features) > 1:
        return (
            "all images have the same features, so nothing tells their classes apart: look at the "
            "images, and at the units that the features are of.",
        )
    notes, same = [], duplicate_groups(features)
    copies = len(same) - len(same.unique())
    if copies and not grouped:
        notes.append(
            f"{copies} of {len(labels)} images are copies of others (equal features): what is "
            "said of images left out is too good for them, as their copies stayed in. Take them "
            "out, or give groups that hold copies together."
        )
    if copies:
        told = torch.column_stack([same, labels]).unique(dim=0)[:, 0]
        if clashes := int((told.unique(return_counts=True)[1] > 1).sum()):
            notes.append(
                f"{counted(clashes, 'picture')} with labels that contradict each other: at most "
                "one of the copies can be told right."
            )
    return tuple(notes)
