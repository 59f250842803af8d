"""Predictions for every training image by a fit without it: what they are, and who is left out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, check_same, labelling_in
from ...data.metrics import mean_per_class_recall
from ...errors import ResiDualError

How = Literal["one", "block", "group", "fold", "none"]
FOLDS = 5
SMALL_CLASS = 32
"""Images of the rarest class from which on one image is left out at a time.

Without the image its class is rarer than the others by that image, which counts against it: with 2
images per class leave-one-out accuracy was .39 where test accuracy was .72. Blocks of one image
of every class have no such tilt; from 32 on the two agree on handwriting.
"""


@dataclass(frozen=True)
class LeftOut:
    """Logits of each training image by a fit that did not see it."""

    logits: Tensor  # final ones, text weight and temperature applied (N, C)
    labels: Tensor  # class numbers (N,), or with several labels zeros and ones (N, C)
    # what was left out with the image: nothing else ("one"), one image of every class ("block"),
    # its group ("group") or a share of all images ("fold"). With "none" nothing was, as no class
    # has a second image: the logits are of the fit on all images, and promise nothing.
    how: How
    # False where the fit without the image saw no other image of its class (N,): such an image
    # cannot be told right, and says nothing of how good the head is
    known: Tensor

    @property
    def losses(self) -> Tensor:
        """Log-loss of each image (N,), over several labels their sum."""
        return labelling_in(self.labels).losses(self.logits.double(), self.labels)

    @property
    def log_loss(self) -> float:
        """Mean over the images whose class was known without them; nan where there is none."""
        return float(self.losses[self.known].mean())

    @property
    def accuracy(self) -> float:
        """Share told right of the same images; with several labels of all their labels."""
        right = labelling_in(self.labels).right(self.logits, self.labels)
        return float(right[self.known].mean())

    @property
    def recall(self) -> float:
        """Mean per-class recall of the same images, for one label per image."""
        return mean_per_class_recall(self.logits[self.known], self.labels[self.known])


@dataclass(frozen=True)
class Leaving:
    """Which images are left out together."""

    how: How  # as in `LeftOut`
    # rows that are left out together, disjoint; one row each where `how` is "one"
    parts: tuple[Tensor, ...]
    numbers: Tensor  # of the part that each image is of (N,); its own row's with "none"
    known: Tensor  # as in `LeftOut`


def leaving_of(
    labels: Tensor,
    class_count: int,
    groups: Tensor | Sequence[object] | None = None,
    how: How | None = None,
) -> Leaving:
    """Who is left out with whom: bursts, films or persons, where images have such groups.

    `how` is "group" where there are groups when None, else "block" where the rarest class has fewer
    than `SMALL_CLASS` images, else "one".
    """
    labelling, count = labelling_in(labels), len(labels)
    numbers = torch.arange(count)
    if groups is not None:
        how, numbers = "group", _group_numbers(groups, count)
    else:
        sizes = labelling.counts(labels, class_count)
        if how is None:
            how = "block" if labelling.leaves_blocks(sizes, SMALL_CLASS) else "one"
        if how == "none" or count == 1 or not labelling.may_leave_out(sizes):
            return Leaving("none", (), numbers, torch.zeros(count, dtype=torch.bool))
        if how == "block":
            why = "leave out one image at a time, not one of every class"
            check_same(ONE_LABEL, labelling, why)
            # one image of every class that has any left, in the order they stand in
            order = labels.argsort(stable=True)
            starts = sizes.cumsum(0) - sizes
            numbers[order] = torch.arange(count) - starts[labels[order]]
    parts = parts_of(numbers)
    one_hot = labelling.targets(labels, class_count)
    inside = torch.zeros(len(parts), class_count, dtype=one_hot.dtype)
    inside.index_add_(0, numbers, one_hot)
    # whether no image outside the part has a class (with several labels, one of the image's)
    missing = inside == one_hot.sum(0)
    return Leaving(how, parts, numbers, ~(missing[numbers] & (one_hot > 0)).any(1))


def _group_numbers(groups: Tensor | Sequence[object], count: int) -> Tensor:
    values = groups.tolist() if isinstance(groups, Tensor) else [str(name) for name in groups]
    if len(values) != count:
        raise ResiDualError(f"wanted one group for each of {count} images, got {len(values)}.")
    different, numbers = np.unique(np.asarray(values), return_inverse=True)
    if len(different) < 2:
        raise ResiDualError(
            "wanted at least two groups of images, got one: nothing would be left to fit on "
            "without it. Copies are of one group, and join those that they are in: give finer "
            "groups, or pictures that differ."
        )
    return torch.from_numpy(numbers)


def parts_of(numbers: Tensor) -> tuple[Tensor, ...]:
    """The rows of each number."""
    return numbers.argsort(stable=True).split(torch.bincount(numbers).tolist())


def stratified_folds(
    labels: Tensor, *, folds: int = FOLDS, groups: Tensor | None = None
) -> Tensor | None:
    """The fold of every image, (N,) int64 from 0, the same in every run; None where it is no use.

    Every class's images are spread evenly over the folds, with several labels without regard to
    them. A class of fewer images than folds makes fewer folds, down to two, so that no fold holds
    all images of a class that has two or more. With one image in every class there is nothing to
    learn from folds, since an image's class has then none left. Groups stay together by
    scikit-learn's StratifiedGroupKFold, or by size alone with several labels.
    """
    if folds < 2:
        raise ResiDualError(f"wanted two or more folds, got {folds}.")
    strata = labelling_in(labels).strata(labels)
    sizes = strata.bincount()
    if not (sizes > 1).any():
        return None
    folds = min(folds, int(sizes[sizes > 1].min()))
    folds = min(folds, len(labels) if groups is None else len(groups.unique()))
    if folds < 2:
        return None
    found = torch.empty(len(labels), dtype=torch.int64)
    if groups is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with one image, which no fold can help
            parts = list(split.split(strata.numpy(), strata.numpy(), groups.numpy()))
        for number, (_, outside) in enumerate(parts):
            found[torch.from_numpy(outside)] = number
        return found
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[strata[order].argsort(stable=True)]
    # one class after the other, going on where the last one stopped: folds of equal size, too
    found[order] = torch.arange(len(labels)) % folds
    return found
