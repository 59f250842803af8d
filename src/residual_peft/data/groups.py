"""Images that belong together, such as those of one patient or one camera, and stay in one part."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ResiDualError
from .labels import labelling_in
from .stratification import Labels, Rows, check_parts


def linked_groups(first: Sequence[Any] | Rows, second: Sequence[Any] | Rows) -> Rows:
    """A number for each of the values of `first`, equal where rows lead from one to the other.

    Rows that share a value of either are linked, and so on from row to row: copies of an image are
    in all of its groups, and join them.

    Args:
        first: of N rows, values 0 ... M - 1.
        second: of N rows, anything.

    Returns:
        (M,), numbered by the first of the values.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, numbers = np.unique(np.asarray(second).astype(str), return_inverse=True)
    values = np.asarray(first)
    count = int(values.max()) + 1
    edges = (np.ones(len(values)), (values, count + numbers))
    graph = coo_array(edges, shape=(count + len(names),) * 2)
    found = connected_components(graph, directed=False)[1][:count]
    _, place, number = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(place))[number]


def grouped_split(
    labels: Labels, groups: Rows, shares: Mapping[str, float], seed: int
) -> dict[str, Rows]:
    """Cut rows into "train" and the given parts, groups whole and classes as alike as that lets.

    Parts are folds of scikit-learn's StratifiedGroupKFold, with several labels per image those of
    GroupKFold. A class that would be left without rows in "train" gets its smallest group back.

    Args:
        labels: class numbers (N,), or zeros and ones (N, C).
        groups: (N,).
        shares: part -> share of the rows.
        seed: of the order in which groups are shared out.

    Raises:
        ResiDualError: fewer groups than parts.
    """
    if (count := len(np.unique(groups))) <= len(shares):
        raise ResiDualError(
            f"wanted a group of images for each of train, {', '.join(shares)}, got "
            f"{count} that may be scored; bring more groups, or your own splits."
        )
    part_of = np.zeros(len(labels), dtype=np.int64)
    kind = labelling_in(labels).group_folds()
    for number, share in enumerate(shares.values(), start=1):
        rest = np.flatnonzero(part_of == 0)
        wanted = share * len(labels)
        most = len(np.unique(groups[rest])) - (len(shares) - number)
        folds = max(2, min(most, round(len(rest) / wanted)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer rows than folds
            cut = kind(folds, shuffle=True, random_state=seed + number)
            chosen = [out for _, out in cut.split(rest, labels[rest], groups[rest]) if len(out)]
        part_of[rest[min(chosen, key=lambda rows: abs(len(rows) - wanted))]] = number
    _give_back(labels, groups, part_of)
    parts = {name: np.flatnonzero(part_of == n) for n, name in enumerate(["train", *shares])}
    check_parts(parts, len(labels))
    return parts


def _give_back(labels: Labels, groups: Rows, part_of: Rows) -> None:
    """Let train have a group of each class, the smallest that there is."""
    for has in labelling_in(labels).by_class(labels).T:
        if has.any() and not (has & (part_of == 0)).any():
            numbers, sizes = np.unique(groups[has], return_counts=True)
            part_of[groups == numbers[sizes.argmin()]] = 0
