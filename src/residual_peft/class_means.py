"""Labelled images -> one embedding per class, for towers that have no text tower beside them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .anatomy import find_tower
from .decomposition import checked_inputs, run_tower
from .errors import ResiDualError
from .predictions import check_class_numbers


@torch.no_grad()
def class_means(model: nn.Module, batches: Iterable[Any], class_names: Sequence[str]) -> Tensor:
    """Normalize the readouts of each class's images, take their mean, normalize it: (C, d).

    Summed in float64 and given back in float32 or, for a float64 model, in float64.

    Args:
        model: run as it is, adapters included.
        batches: dicts with `pixel_values` and `labels`, or pairs of the two.
        class_names: C names, for messages; labels are their numbers.

    Raises:
        ResiDualError: batches of another kind, labels that do not suit, or a class without images.
    """
    count = len(class_names)
    sums: Tensor | None = None
    images = torch.zeros(count, dtype=torch.int64)
    weight, anatomy = next(model.parameters()), find_tower(model)
    for batch in batches:
        pixels, labels = _labelled(batch)
        check_class_numbers(labels, count)
        inputs = checked_inputs(anatomy, pixels)
        readout = run_tower(model, inputs, anatomy=anatomy).cpu().double()
        if sums is None:
            sums = torch.zeros(count, readout.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels.cpu(), functional.normalize(readout, dim=-1))
        images += labels.cpu().bincount(minlength=count)
    if sums is None or not images.all():
        missing = [
            name for name, seen in zip(class_names, images.tolist(), strict=True) if not seen
        ]
        raise ResiDualError(
            f"wanted images of all {count} classes, got none of {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}: give more images, or leave those "
            "classes out of class_names."
        )
    means = sums / images[:, None]
    return functional.normalize(means, dim=-1).to(torch.promote_types(weight.dtype, torch.float32))


def _labelled(batch: Any) -> tuple[Any, Tensor]:
    """What a tower takes of a batch, and its labels."""
    inputs = labels = None
    if isinstance(batch, Mapping):
        inputs, labels = batch, batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, labels = batch
    if not isinstance(inputs, Tensor | Mapping) or not isinstance(labels, Tensor):
        raise ResiDualError(
            "wanted batches with pixel_values and labels as tensors, as dicts or as pairs, got "
            f"{type(batch).__name__}; class means need labelled images."
        )
    return inputs, labels
