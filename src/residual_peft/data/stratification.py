"""Cutting images into parts that are alike: by class, or with several labels per image by each.

The latter is iterative stratification (K. Sechidis, G. Tsoumakas and I. Vlahavas, On the
stratification of multi-label data, ECML PKDD 2011): the rarest label is shared out first, while
there is still room to be fair to it.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ResiDualError

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.integer]
Rows = npt.NDArray[np.int64]


def stratified_split(
    labels: Labels,
    shares: Mapping[str, float],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> dict[str, npt.NDArray[np.int64]]:
    """Cut rows into "train" and the given parts, each class in the same shares.

    Every class keeps at least one row in every part. Rows stay in order within a part.

    Raises:
        ResiDualError: shares that leave nothing to train on, or a class with too few rows.
    """
    _check_shares(shares)
    generator = np.random.default_rng(seed)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], **{name: [] for name in shares}}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) <= len(shares):
            title = class_names[label] if class_names else label
            raise ResiDualError(
                f"class '{title}' has {len(rows)} image(s), too few to give one each to train, "
                f"{' and '.join(shares)}; add images or bring your own splits."
            )
        for name, share in shares.items():
            # what is left must still give every later part and train one row
            count = min(max(1, round(share * len(labels[labels == label]))), len(rows) - 1)
            parts[name].append(rows[:count])
            rows = rows[count:]
        parts["train"].append(rows)
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def iterative_split(
    labels: Labels,
    shares: Mapping[str, float],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> dict[str, Rows]:
    """Cut rows into "train" and the given parts, each label in the same shares as far as it goes.

    A label of few images is given to train first, then one image each to the other parts; a part
    that still lacks one is reported as a warning. Rows stay in order within a part.

    Args:
        labels: zeros and ones (N, C).
        shares: part -> share of the images.
        seed: of the order in which images of a label are shared out.
        class_names: for messages.

    Raises:
        ResiDualError: shares that leave nothing to train on, or a part without any image.
    """
    _check_shares(shares)
    names = ["train", *shares]
    counts = labels.sum(0, dtype=np.int64)
    part_shares = np.array([1 - sum(shares.values()), *shares.values()])
    wanted = part_shares[:, None] * counts
    wanted[1:] = np.maximum(wanted[1:], 1)
    wanted[0] = counts - wanted[1:].sum(0)
    few = wanted[0] < 1  # too few for all: one each, train first
    wanted[:, few] = np.arange(len(names))[:, None] < counts[few]
    part_of = _assigned(labels, wanted, part_shares * len(labels), seed)
    parts = {name: np.flatnonzero(part_of == index) for index, name in enumerate(names)}
    for name, rows in parts.items():
        if not len(rows):
            raise ResiDualError(
                f"{len(labels)} images are too few to give one each to {', '.join(names)}; add "
                "images or bring your own splits."
            )
        if missing := np.flatnonzero((labels[rows].sum(0) == 0) & (counts > 0)).tolist():
            titles = [class_names[i] if class_names else str(i) for i in missing]
            listed = ", ".join(titles[:5]) + (", ..." if len(titles) > 5 else "")
            logger.warning("the part '%s' has no image with the label %s", name, listed)
    return parts


def iterative_folds(labels: Labels, folds: int, seed: int = 0) -> Rows:
    """The fold of each row, (N,) from 0 to `folds` - 1; each label is in all of them alike.

    Args:
        labels: zeros and ones (N, C).
        folds: how many.
        seed: of the order in which images of a label are shared out.
    """
    shares = np.full(folds, 1 / folds)
    wanted = shares[:, None] * labels.sum(0, dtype=np.int64)
    return _assigned(labels, wanted, shares * len(labels), seed)


def _assigned(
    labels: Labels, wanted: npt.NDArray[np.float64], room: npt.NDArray[np.float64], seed: int
) -> Rows:
    """The part of each row, (N,).

    Args:
        labels: zeros and ones (N, C).
        wanted: images of each label that each part wants, (P, C).
        room: images that each part wants, (P,).
        seed: of the order of rows.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    part_of = np.full(len(labels), -1)
    wanted, room, left = wanted.copy(), room.copy(), labels.sum(0, dtype=np.int64)
    parts = range(len(room))

    def give(row: int, part: int) -> None:
        part_of[row] = part
        wanted[part] -= labels[row]
        room[part] -= 1

    while left.any():
        label = int(np.where(left > 0, left, left.max() + 1).argmin())
        rows = order[(part_of[order] < 0) & (labels[order, label] > 0)]
        for row in rows:
            give(row, max(parts, key=lambda part: (wanted[part, label], room[part])))
        left -= labels[rows].sum(0, dtype=np.int64)
    for row in order[part_of[order] < 0]:  # without any label
        give(row, int(room.argmax()))
    return part_of


def _check_shares(shares: Mapping[str, float]) -> None:
    """Raise a ResiDualError unless the shares leave something to train on."""
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ResiDualError(f"wanted shares between 0 and 1 that leave a rest, got {dict(shares)}.")
