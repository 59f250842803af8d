"""Labelled images -> one embedding per class, for towers that have no text tower beside them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bases.reading import reading
from ..data.labels import ONE_LABEL
from ..errors import ResiDualError

CHUNK = 4096  # readouts that are taken to float64 at a time


def class_means(model: nn.Module, batches: Iterable[Any], class_names: Sequence[str]) -> Tensor:
    """Normalize the readouts of each class's images, take their mean, normalize it: (C, d).

    Summed in float64 and given back in float32 or, for a float64 model, in float64.

    Args:
        model: run as it is, adapters included, in eval mode.
        batches: dicts with `pixel_values` and `labels`, or pairs of the two.
        class_names: C names, for messages; labels are their numbers.

    Raises:
        ResiDualError: batches of another kind, labels that do not suit, or a class without images.
    """
    sums = _Sums(class_names)
    for seen in reading(model, None, batches, adapters=True, labelled=True):
        assert seen.labels is not None
        sums.add(seen.readout, seen.labels)
    return sums.means(next(model.parameters()).dtype)


def class_means_of(readouts: Tensor, labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """The same from readouts (N, d) and labels (N,) that were collected already."""
    sums = _Sums(class_names)
    for part, numbers in zip(readouts.split(CHUNK), labels.split(CHUNK), strict=True):
        sums.add(part, numbers)
    return sums.means(readouts.dtype)


class _Sums:
    """Unit-norm readouts summed by class."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.sums: Tensor | None = None  # (C, d)
        self.images = torch.zeros(len(class_names), dtype=torch.int64)

    @torch.no_grad()
    def add(self, readout: Tensor, labels: Tensor) -> None:
        ONE_LABEL.check(labels, len(self.class_names))
        exact, labels = readout.detach().cpu().double(), labels.cpu()
        if self.sums is None:
            self.sums = exact.new_zeros(len(self.class_names), exact.shape[1])
        self.sums.index_add_(0, labels, functional.normalize(exact, dim=-1))
        self.images += labels.bincount(minlength=len(self.class_names))

    def means(self, dtype: torch.dtype) -> Tensor:
        """Means in float32 or better."""
        if self.sums is None or not self.images.all():
            seen = zip(self.class_names, self.images.tolist(), strict=True)
            missing = [name for name, count in seen if not count]
            raise ResiDualError(
                f"wanted images of all {len(self.class_names)} classes, got none of "
                f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}: give more "
                "images, or leave those classes out of class_names."
            )
        means = functional.normalize(self.sums / self.images[:, None], dim=-1)
        return means.to(torch.promote_types(dtype, torch.float32))
