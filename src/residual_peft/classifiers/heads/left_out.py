"""Predictions for every training image by a fit without it: what they are, and who is left out."""

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
    if groups is not None:
        parts = _groups(groups, count)
        return Leaving("group", parts, _known(labels, class_count, parts))
    sizes = labelling.counts(labels, class_count)
    if how is None:
        how = "block" if labelling.leaves_blocks(sizes, SMALL_CLASS) else "one"
    if how == "none" or count == 1 or not labelling.may_leave_out(sizes):
        return Leaving("none", (), torch.zeros(count, dtype=torch.bool))
    if how == "block":
        check_same(ONE_LABEL, labelling, "leave out one image at a time, not one of every class")
    single = tuple(torch.arange(count).unsqueeze(1))
    parts = _blocks(labels, sizes) if how == "block" else single
    return Leaving(how, parts, _known(labels, class_count, parts))


def _groups(groups: Tensor | Sequence[object], count: int) -> tuple[Tensor, ...]:
    values = groups.tolist() if isinstance(groups, Tensor) else [str(name) for name in groups]
    if len(values) != count:
        raise ResiDualError(f"wanted one group for each of {count} images, got {len(values)}.")
    _, numbers = np.unique(np.asarray(values), return_inverse=True)
    parts = parts_of(torch.from_numpy(numbers))
    if len(parts) < 2:
        raise ResiDualError(
            "wanted at least two groups of images, got one: nothing would be left to fit on "
            "without it. Copies are of one group, and join those that they are in: give finer "
            "groups, or pictures that differ."
        )
    return parts


def _blocks(labels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    """One image of every class that has any left, in the order they stand in."""
    order = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels)) - starts[labels[order]]
    return parts_of(place)


def parts_of(numbers: Tensor) -> tuple[Tensor, ...]:
    """The rows of each number."""
    order = numbers.argsort(stable=True)
    return order.split(torch.bincount(numbers).tolist())


def _known(labels: Tensor, class_count: int, parts: Sequence[Tensor]) -> Tensor:
    """Whether the images outside an image's part have its class (with several labels, all)."""
    one_hot = labelling_in(labels).targets(labels, class_count)
    part_of = torch.empty(len(labels), dtype=torch.long)
    for number, rows in enumerate(parts):
        part_of[rows] = number
    inside = torch.zeros(len(parts), class_count, dtype=one_hot.dtype)
    inside.index_add_(0, part_of, one_hot)
    missing = inside == one_hot.sum(0)
    return ~(missing[part_of] & (one_hot > 0)).any(1)
