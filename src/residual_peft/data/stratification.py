"""Cutting images into parts that are alike: by class, or with several labels per image by each.

The latter is iterative stratification (K. Sechidis, G. Tsoumakas and I. Vlahavas, On the
stratification of multi-label data, ECML PKDD 2011): the rarest label is shared out first, while
there is still room to be fair to it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ResiDualError, printable, some

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.integer]
Rows = npt.NDArray[np.int64]


def stratified_split(
    labels: Labels, shares: Mapping[str, float], seed: int, class_names: Sequence[str] | None = None
) -> dict[str, npt.NDArray[np.int64]]:
    """Cut rows into "train" and the given parts, each class in the same shares.

    Every class keeps at least one row in every part; one with too few rows for that gives train its
    first, then the others one each, and is named in a warning. Rows stay in order within a part.

    Raises:
        ResiDualError: shares that leave nothing to train on, or a part without any row.
    """
    check_shares(shares)
    generator = np.random.default_rng(seed)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], **{name: [] for name in shares}}
    few = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) <= len(shares):
            few.append(f"'{class_names[label] if class_names else label}' ({len(rows)})")
            for name, row in zip(parts, rows, strict=False):
                parts[name].append(np.array([row]))
            continue
        whole = len(rows)
        for place, (name, share) in enumerate(shares.items()):
            # what is left must still give every later part and train one row
            count = min(max(1, round(share * whole)), len(rows) - (len(shares) - place))
            parts[name].append(rows[:count])
            rows = rows[count:]
        parts["train"].append(rows)
    if few:
        logger.warning(
            "%s with too few different images for one each in %s, so these are for training "
            "first: %s",
            "1 class" if len(few) == 1 else f"{len(few):,} classes",
            ", ".join(parts),
            printable(some(few)),
        )
    check_parts(parts, len(labels))
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def few_split(
    labels: Labels, few: int, seed: int, class_names: Sequence[str], tested: bool
) -> dict[str, Rows]:
    """Draw so many rows of each class for "train"; the others are "test".

    A class of no more keeps one row for "test" if it has two, and is named in a warning; where
    there are test images (`tested`) none need be kept. Labels are (N,); rows stay in order within a
    part.

    Raises:
        ResiDualError: less than one row, or no row left to test on.
    """
    if few < 1:
        raise ResiDualError(f"wanted to draw 1 or more images of each class, got {few}.")
    generator = np.random.default_rng(seed)
    drawn, short = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: max(1, min(few, len(rows) - (not tested)))])
        if len(rows) < few + (not tested):
            short.append(f"'{class_names[label]}' ({len(rows)})")
    if short:
        logger.warning(
            "%s with %s than the %d images to draw: %s",
            "1 class" if len(short) == 1 else f"{len(short):,} classes",
            "fewer" if tested else "no more",
            few,
            printable(some(short)),
        )
    train = np.sort(np.concatenate(drawn))
    parts = {"train": train, "test": np.setdiff1d(np.arange(len(labels)), train)}
    check_parts({"train": train} if tested else parts, len(labels))
    return parts


def iterative_split(
    labels: Labels, shares: Mapping[str, float], seed: int, class_names: Sequence[str] | None = None
) -> dict[str, Rows]:
    """Cut rows into "train" and the given parts, each label in the same shares as far as it goes.

    A label of few images is given to train first, then one image each to the other parts; a part
    that still lacks one is reported as a warning. Labels are zeros and ones (N, C); rows stay in
    order within a part.

    Raises:
        ResiDualError: shares that leave nothing to train on, or a part without any image.
    """
    check_shares(shares)
    names = ["train", *shares]
    counts = labels.sum(0, dtype=np.int64)
    part_shares = np.array([1 - sum(shares.values()), *shares.values()])
    quotas = part_shares[:, None] * counts
    quotas[1:] = np.maximum(quotas[1:], 1)
    quotas[0] = counts - quotas[1:].sum(0)
    few = quotas[0] < 1  # too few for all: one each, train first
    quotas[:, few] = np.arange(len(names))[:, None] < counts[few]
    part_of = _assigned(labels, quotas, part_shares * len(labels), seed)
    parts = {name: np.flatnonzero(part_of == index) for index, name in enumerate(names)}
    check_parts(parts, len(labels))
    for name, rows in parts.items():
        if missing := np.flatnonzero((labels[rows].sum(0) == 0) & (counts > 0)).tolist():
            titles = [class_names[i] if class_names else str(i) for i in missing]
            listed = printable(some(titles))
            logger.warning("the part '%s' has no image with the label %s", name, listed)
    return parts


def iterative_folds(labels: Labels, folds: int, seed: int = 0) -> Rows:
    """The fold of each row of labels (N, C), (N,) from 0 on; each label is in all of them alike."""
    shares = np.full(folds, 1 / folds)
    quotas = shares[:, None] * labels.sum(0, dtype=np.int64)
    return _assigned(labels, quotas, shares * len(labels), seed)


def _assigned(
    labels: Labels, quotas: npt.NDArray[np.float64], room: npt.NDArray[np.float64], seed: int
) -> Rows:
    """The part of each row of labels (N, C): (N,).

    Each part wants so many images of each label, (P, C), and so many images in all, (P,).
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    part_of = np.full(len(labels), -1)
    quotas, room, left = quotas.copy(), room.copy(), labels.sum(0, dtype=np.int64)
    parts = range(len(room))

    def give(row: int, part: int) -> None:
        part_of[row] = part
        quotas[part] -= labels[row]
        room[part] -= 1

    while left.any():
        label = int(np.where(left > 0, left, left.max() + 1).argmin())
        rows = order[(part_of[order] < 0) & (labels[order, label] > 0)]
        for row in rows:
            give(row, max(parts, key=lambda part: (quotas[part, label], room[part])))
        left -= labels[rows].sum(0, dtype=np.int64)
    for row in order[part_of[order] < 0]:  # without any label
        give(row, int(room.argmax()))
    return part_of


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise a ResiDualError unless the shares leave something to train on."""
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ResiDualError(f"wanted shares between 0 and 1 that leave a rest, got {dict(shares)}.")


def check_parts(parts: Mapping[str, Sequence[Any] | Rows], count: int) -> None:
    """Raise a ResiDualError unless every part has an image."""
    if not all(map(len, parts.values())):
        raise ResiDualError(
            f"{count} different images are too few to give one each to {', '.join(parts)}, where "
            "every class keeps one to learn from; add images or bring your own splits."
        )
