"""Which training images are left out together, where a method has no closed form for it."""

import torch
from torch import Tensor

from ...data.labels import labelling_in
from ...errors import ResiDualError

FOLDS = 5


def images_per_class(labels: Tensor, class_count: int) -> Tensor:
    """How many images each class has, (C,) int64, from labels (N,) or zeros and ones (N, C)."""
    return labelling_in(labels).counts(labels, class_count)


def stratified_folds(
    labels: Tensor, class_count: int, *, folds: int = FOLDS, groups: Tensor | None = None
) -> Tensor | None:
    """The fold of every image, (N,) int64 from 0, the same in every run; None where it is no use.

    Every class's images are spread evenly over the folds. A class of fewer images than folds makes
    fewer folds, down to two, so that no fold holds all images of a class that has two or more. With
    one image in every class there is nothing to learn from folds, since an image's class has then
    none left.

    Args:
        labels: (N,), or zeros and ones (N, C), whose images are spread without regard to them.
        class_count: C.
        folds: at most.
        groups: (N,), images of the same number stay together (scikit-learn's StratifiedGroupKFold,
            or by size alone with several labels).

    Raises:
        ResiDualError: fewer than two folds asked for.
    """
    if folds < 2:
        raise ResiDualError(f"wanted two or more folds, got {folds}.")
    counts = images_per_class(labels, class_count)
    if labels.ndim == 1:
        present = counts[counts > 0]
        if len(labels) < 2 or int(present.max()) < 2:
            return None
        several = present[present > 1]
        folds = min(folds, max(2, int(several.min())))
    folds = min(folds, len(labels) if groups is None else len(groups.unique()))
    if folds < 2:
        return None
    if groups is not None:
        return _grouped(labels, groups, folds)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    if labels.ndim == 1:
        order = order[labels[order].argsort(stable=True)]
    found = torch.empty(len(labels), dtype=torch.int64)
    # one class after the other, going on where the last one stopped: folds of equal size, too
    found[order] = torch.arange(len(labels)) % folds
    return found


def _grouped(labels: Tensor, groups: Tensor, folds: int) -> Tensor:
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    several = labels.ndim == 2
    split = (
        GroupKFold(folds) if several else StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    )
    found = torch.empty(len(labels), dtype=torch.int64)
    parts = split.split(labels.numpy(), None if several else labels.numpy(), groups.numpy())
    for number, (_, outside) in enumerate(parts):
        found[torch.from_numpy(outside)] = number
    return found


def one_of_each(labels: Tensor, class_count: int) -> Tensor:
    """Blocks that hold at most one image of every class, (N,) int64: an image's rank in its class.

    Leaving out a block takes one image from every class that has so many, so that none is put at
    a disadvantage beside the others (`method.md`, section 8).
    """
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in range(class_count):
        own = (labels == label).nonzero().flatten()
        rank[own] = torch.arange(len(own))
    return rank
