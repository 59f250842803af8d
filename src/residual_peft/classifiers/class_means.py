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
    parts = (
        (seen.readout, seen.labels)
        for seen in reading(model, None, batches, adapters=True, labelled=True)
    )
    return _means(parts, next(model.parameters()).dtype, class_names)


def class_means_of(readouts: Tensor, labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """The same from readouts (N, d) and labels (N,) that were collected already."""
    parts = zip(readouts.split(CHUNK), labels.split(CHUNK), strict=True)
    return _means(parts, readouts.dtype, class_names)


@torch.no_grad()
def _means(
    parts: Iterable[tuple[Tensor, Tensor | None]], dtype: torch.dtype, class_names: Sequence[str]
) -> Tensor:
    """Of readouts and labels in parts, in float32 or, where `dtype` is more, in that."""
    classes = len(class_names)
    sums, images = torch.zeros(0), torch.zeros(classes, dtype=torch.int64)
    for readout, labels in parts:
        assert labels is not None
        ONE_LABEL.check(labels, classes)
        exact, labels = readout.detach().cpu().double(), labels.cpu()
        if not len(sums):
            sums = exact.new_zeros(classes, exact.shape[1])
        sums.index_add_(0, labels, functional.normalize(exact, dim=-1))
        images += labels.bincount(minlength=classes)
    if not images.all():
        missing = [class_names[number] for number in (images == 0).nonzero().flatten().tolist()]
        raise ResiDualError(
            f"wanted images of all {classes} classes, got none of "
            f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}: give more "
            "images, or leave those classes out of class_names."
        )
    means = functional.normalize(sums / images[:, None], dim=-1)
    return means.to(torch.promote_types(dtype, torch.float32))
