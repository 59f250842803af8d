"""Images that belong together, such as those of one patient or one camera, and stay in one part."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import ResiDualError, counted, printable
from .labels import labelling_in
from .labels.columns import text_of
from .stratification import Labels, Rows

logger = logging.getLogger(__name__)


def linked_groups(first: Sequence[Any] | Rows, second: Sequence[Any] | Rows) -> Rows:
    """A number for each of the values of `first`, equal where rows lead from one to the other.

    Rows (N,) that share a value of `first`, 0 ... M - 1, or of `second` are linked, and so on from
    row to row: copies of an image are in all of its groups, and join them. (M,), numbered by the
    first of the values.
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


def group_names(
    parts: Mapping[str, Dataset], digests: Mapping[str, Sequence[str]], name: str
) -> dict[str, tuple[str, ...]]:
    """What each image is left out with, by split: its value in the column `group`, as text.

    An image without a value is a group by itself, under the name of its content (`digests`). That
    is said, and so is what groups of "train" are in another split, too: splits that are there stay
    as they are.
    """
    found, empty = {}, 0
    for split, rows in parts.items():
        # 1.0 is 1, as of a table, where a value is missing in another split
        texts = ["" if v in (None, "") or v != v else str(text_of(v)) for v in rows["group"]]
        empty += texts.count("")
        found[split] = tuple(
            text or f"image\x1f{digest}" for text, digest in zip(texts, digests[split], strict=True)
        )
    if empty:
        logger.warning(
            "%s of %s without a group: each is one by itself",
            counted(empty, "image"),
            printable(name),
        )
    learned = set(found.get("train", ()))
    for split in [part for part in found if part != "train"]:
        if shared := [group for group in found[split] if group in learned]:
            logger.warning(
                "%s of train in %s of %s as well, with %d of its %d images: no score on those "
                "says what new groups will give",
                counted(len(set(shared)), "group"),
                split,
                printable(name),
                len(shared),
                len(found[split]),
            )
    return found


def grouped_split(
    labels: Labels, groups: Rows, shares: Mapping[str, float], seed: int
) -> dict[str, Rows]:
    """Cut rows into "train" and the given parts, groups whole and classes as alike as that lets.

    Parts are folds of scikit-learn's StratifiedGroupKFold, with several labels per image those of
    GroupKFold, or single groups where each fold would leave too few for the parts to come. A group
    that alone has a class stays in "train", and a class that would be left without rows there gets
    its smallest group back. Groups are (N,), labels (N,) or zeros and ones (N, C); `seed` is below
    2 ** 32.

    Raises:
        ResiDualError: too few groups for the parts, with every class in "train".
    """
    part_of = np.zeros(len(labels), dtype=np.int64)
    count, classes = len(np.unique(groups)), labelling_in(labels).by_class(labels).T
    own = [np.unique(groups[has]) for has in classes]
    # the groups that alone have a class
    needed = np.unique([numbers[0] for numbers in own if len(numbers) == 1])
    bound = np.isin(groups, needed)
    if count - max(1, len(needed)) < len(shares):
        raise _too_few(count, shares)
    for number, share in enumerate(shares.values(), start=1):
        rest = np.flatnonzero((part_of == 0) & ~bound)
        least = len(shares) - number + (len(needed) == 0)  # groups that others are still to have
        seed = (seed + 1) % 2**32
        rows = _fold(labels[rest], groups[rest], share * len(labels), least, seed)
        part_of[rest[rows]] = number
    _give_back(labels, groups, part_of)
    parts = {name: np.flatnonzero(part_of == n) for n, name in enumerate(["train", *shares])}
    if not all(map(len, parts.values())):
        raise _too_few(count, shares)
    return parts


def _too_few(count: int, shares: Mapping[str, float]) -> ResiDualError:
    return ResiDualError(
        f"wanted a group of images for each of train, {', '.join(shares)}, and each class in a "
        f"group of train, got {counted(count, 'group')} that may be scored; bring more groups, or "
        "your own splits."
    )


def _fold(labels: Labels, groups: Rows, size: float, least: int, seed: int) -> Rows:
    """Rows of whole groups, about `size` of them; `least` groups are not among them."""
    count = len(np.unique(groups))
    most = min(count, int(labelling_in(labels).by_class(labels).sum(0).max(initial=0)))
    found = []
    if count > 1 and most > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer rows than folds
            kind = labelling_in(labels).group_folds()
            folds = max(2, min(most, round(len(labels) / size)))
            cut = kind(folds, shuffle=True, random_state=seed)
            found = [rows for _, rows in cut.split(labels, labels, groups)]
    fit = [rows for rows in found if 0 < len(np.unique(groups[rows])) <= count - least]
    fit = fit or [np.flatnonzero(groups == number) for number in np.unique(groups)]
    return min(fit, key=lambda rows: abs(len(rows) - size))


def _give_back(labels: Labels, groups: Rows, part_of: Rows) -> None:
    """Let train have a group of each class, the smallest that its part can spare, or that is."""
    for has in labelling_in(labels).by_class(labels).T:
        if has.any() and not (has & (part_of == 0)).any():
            numbers, sizes = np.unique(groups[has], return_counts=True)
            order = numbers[sizes.argsort(kind="stable")]
            part = {n: part_of[groups == n][0] for n in order}
            spared = (n for n in order if len(np.unique(groups[part_of == part[n]])) > 1)
            part_of[groups == next(spared, order[0])] = 0
