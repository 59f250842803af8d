"""Which training images are left out together, where a method has no closed form for it."""

import torch
from torch import Tensor

from ...data.labels import labelling_in
from ...errors import ResiDualError

FOLDS = 5


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
        parts = split.split(strata.numpy(), strata.numpy(), groups.numpy())
        for number, (_, outside) in enumerate(parts):
            found[torch.from_numpy(outside)] = number
        return found
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[strata[order].argsort(stable=True)]
    # one class after the other, going on where the last one stopped: folds of equal size, too
    found[order] = torch.arange(len(labels)) % folds
    return found
