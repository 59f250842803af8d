"""Images that belong together and stay in one part: copies, or those of one patient or camera."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from ..errors import ResiDualError, counted, printable
from .labels import ONE_LABEL, check_same, labelling_in
from .labels.columns import text_of
from .stratification import Labels, Rows, check_shares, few_split

logger = logging.getLogger(__name__)


def split_by_content(
    labels: Labels,
    shares: Mapping[str, float],
    seed: int,
    digests: Sequence[str],
    class_names: Sequence[str],
    title: Callable[[int], str],
    *,
    few: int,
    tested: bool,
    groups: Sequence[str],
) -> dict[str, Rows]:
    """The labelling's split of the different images there are.

    The same images are cut in the same way in whatever order and under whatever names they and
    their classes come: `digests` name N of them by their content. Copies of one image stay
    together, and so do those of one group. An image that has one class here and another there is
    trained on and never scored: no answer to it would be right. With `few` so many images of each
    class are train in place of a share, and the others "test"; of copies the first alone is in
    either, and none of an image that has several classes. Where there are test images (`tested`),
    "test" may then be empty.

    Raises:
        ResiDualError: as `stratified_split` and `iterative_split`; too few groups; with `few`
            several labels per image.
    """
    check_shares(shares)
    labelling, names = labelling_in(labels), np.asarray(digests, dtype=bytes)
    _, first, image_of = np.unique(names, return_index=True, return_inverse=True)
    part_of = np.zeros(len(first), dtype=np.int64)  # of the parts below, train for a start
    other = (labels != labels[first][image_of]).reshape(len(labels), -1).any(1)
    own, order, clear = labelling.by_image(labels, first, image_of, np.unique(image_of[other]))
    what = "; left out" if few else labelling.differing_words
    _say_repeated(image_of, first, other, what, title)
    titles = [class_names[label] for label in order]
    if few:
        check_same(ONE_LABEL, labelling, "so many images per class are drawn of those")
        parts = few_split(own, few, seed, titles, tested)
        return {part: np.sort(first[clear[rows]]) for part, rows in parts.items()}
    if len(groups):
        linked = linked_groups(image_of, groups)
        apart = ~np.isin(linked[clear], linked[np.setdiff1d(np.arange(len(first)), clear)])
        parts = grouped_split(own[apart], linked[clear][apart], shares, seed)
        clear = clear[apart]
    else:
        parts = labelling.split(own, shares, seed, titles)
    for index, rows in enumerate(parts.values()):
        part_of[clear[rows]] = index
    return {part: np.flatnonzero(part_of[image_of] == i) for i, part in enumerate(parts)}


def _say_repeated(
    image_of: Rows,
    first: Rows,
    other: npt.NDArray[np.bool_],
    what: str,
    title: Callable[[int], str],
) -> None:
    """Say which images occur more than once: with different labels, where; with the same, how many.

    `image_of` has the image of each row (N,), `first` the first row of each, `other` the rows with
    other labels than that one, bool (N,).
    """
    rows = np.flatnonzero(other)
    images, place = np.unique(image_of[rows], return_index=True)
    if len(images):
        # the first row of each image, and its first with other labels
        pairs = sorted(zip(first[images].tolist(), rows[place].tolist(), strict=True))
        named = "; ".join(f"{title(own)} and {title(row)}" for own, row in pairs[:5])
        logger.warning(
            "%s with different labels%s: %s%s",
            "1 image occurs" if len(pairs) == 1 else f"{len(pairs):,} images occur",
            what,
            named,
            "; ..." if len(pairs) > 5 else "",
        )
    if copies := len(image_of) - len(first) - int(other.sum()):
        logger.info(
            "%s of others with the same labels; copies stay in one split",
            "1 image is an exact copy" if copies == 1 else f"{copies:,} images are exact copies",
        )


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
