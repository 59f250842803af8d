"""A folder of images -> splits and classes, as the `imagefolder` of datasets sees them.

Splits are folders (or, where all have one, the file names) with the name of a split in them:
"train", "train_2017", "Val", "eval"; what lies beside them is left out. The class of an image is
the first folder below its split, or below the root where there are no splits, whatever lies further
down (imagefolder takes the innermost). `metadata.csv`, `.jsonl` or `.parquet` with a column of file
names and one of labels come before the folders' names.

Where imagefolder sees no labels, or would lose or mix images, this does not follow it: folders
named like splits without class folders in them are classes if there are other classes, file names
count only where every one names a split, and an image is in one split only.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features

from ..errors import ResiDualError, counted, printable, some
from .class_names import composed
from .tables import has_labels, paths_in, read_metadata, unnamed
from .trees import Parts, Tree

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
CANONICAL_SPLIT = {alias: name for name, aliases in SPLIT_NAMES.items() for alias in aliases}
_BETWEEN = "[-._ 0-9]"  # as datasets.data_files.NON_WORDS_CHARS
_IN_FOLDER = {
    split: re.compile(rf"(.*{_BETWEEN})?({'|'.join(words)})({_BETWEEN}.*)?", re.I | re.S)
    for split, words in SPLIT_NAMES.items()
}
_IN_FILE = {
    split: re.compile(rf"(.*{_BETWEEN})?({'|'.join(words)}){_BETWEEN}.*", re.I | re.S)
    for split, words in SPLIT_NAMES.items()
}


def from_folder(tree: Tree, label_column: str | None = None) -> dict[str, Dataset]:
    """Split -> its images and classes, and whatever else the metadata say.

    The labels of metadata are in `label_column`, or in one of the usual names when None.

    Raises:
        ResiDualError: no images, no classes, metadata that cannot be read, or a class that the
            training images do not have.
    """
    if not tree.images and not tree.metadata:
        classes = [place for place in tree.folders if len(place) == 1]
        raise ResiDualError(
            f"found no images in any class folder: '{tree.root / classes[0][0]}' holds none; add "
            f"images of a kind that PIL reads{tree.instead()}."
            if classes
            else f"found no images in '{tree.root}'{tree.instead()}: wanted one folder of "
            f"images per class in it, such as '{tree.root / 'cat'}' and '{tree.root / 'dog'}'."
        )
    reading = _Reading(tree)
    described = reading.metadata()
    if described:
        found = {s: read_metadata(tree.base, files, s) for s, files in described.items()}
        if reading.classes < 2 or has_labels(next(iter(found.values())), label_column):
            _say_left_out(tree, [*unnamed(tree, found.values()), *tree.unread_pictures()])
            return _shared_out(tree.base, found)
        logger.warning(
            "%s: the metadata have no labels, so classes are folders", printable(tree.root)
        )
    return reading.by_folder()


class _Reading:
    """How the images of a tree are shared out: split, and folders below it, of each."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.splits = [_split_in(path[:-1], _IN_FOLDER) for path in tree.images]
        below = [_unpacked(path[place:])[1:] for path, (_, place) in self._in_splits()]
        whole = all(split for split, _ in self.splits)
        count = len(_tops(below))
        self.by_split = bool(count >= 2 or (count and whole))
        if not self.by_split:
            named = [_split_in(path[-1:], _IN_FILE) for path in tree.images if len(path) > 1]
            all_named = bool(named) and all(split for split, _ in named)
            self.splits = [
                (_split_in(path[-1:], _IN_FILE)[0] if all_named else "train", -1)
                for path in tree.images
            ]
        self.below = self._without_wrapper()
        self.classes = len({path[0] for path in self.below if len(path) > 1})

    def _in_splits(self) -> list[tuple[Parts, tuple[str | None, int]]]:
        pairs = zip(self.tree.images, self.splits, strict=True)
        return [(path, found) for path, found in pairs if found[0]]

    def _without_wrapper(self) -> list[Parts]:
        """Path of each image below its split; less folders that hold all class folders."""
        below = [path[place + 1 :] for path, (_, place) in self._in_splits()]
        while (inner := _inside(below)) is not None:
            below = inner
        by_split: dict[str | None, list[Parts]] = {}
        for path, (_, (split, _)) in zip(below, self._in_splits(), strict=True):
            by_split.setdefault(split, []).append(path)
        found = {split: iter(paths) for split, paths in _alike(by_split).items()}
        return [next(found[split]) for _, (split, _) in self._in_splits()]

    def metadata(self) -> dict[str, list[Parts]]:
        """Split -> its metadata files; those outside the splits are not meant, if there are any."""
        found: dict[str, list[Parts]] = {}
        for path in self.tree.metadata:
            split, _ = _split_in(path[:-1], _IN_FOLDER)
            found.setdefault(split or "", []).append(path)
        outside = found.pop("", [])
        if outside and not found and not self.by_split:
            return {"train": outside}
        if outside:
            _say_left_out(self.tree, [f"'{path[-1]}' beside the splits" for path in outside])
        return found

    def by_folder(self) -> dict[str, Dataset]:
        if not self.by_split:
            self._check_split_names()
        rows: dict[str, dict[str, list[str]]] = {}
        loose: Counter[str] = Counter()
        for (path, (split, _)), below in zip(self._in_splits(), self.below, strict=True):
            if len(below) < 2:
                loose[str(self.tree.root.joinpath(*path[:-1]))] += 1
                continue
            images = rows.setdefault(str(split), {}).setdefault(composed(below[0]), [])
            images.append(str(self.tree.base.joinpath(*path)))
        if not rows:
            raise ResiDualError(
                f"found no images in a class folder: wanted one folder of images per class in "
                f"'{self.tree.root}', got {counted(sum(loose.values()), 'image')} beside each "
                f"other in '{next(iter(loose))}'."
            )
        self._say(loose)
        return _with_classes(self.tree.root, rows)

    def _check_split_names(self) -> None:
        """Images in folders named like splits, without classes below: refused, or a class each."""
        tops = {path[0] for path in self.below if len(path) > 1}
        named = {top: _split_in((top,), _IN_FOLDER)[0] for top in tops}
        named = {top: split for top, split in named.items() if split}
        exact = {top: split for top, split in named.items() if top.lower() in CANONICAL_SPLIT}
        if exact and (len(exact) == len(tops) or len(set(exact.values())) > 1):
            raise ResiDualError(
                f"found no images in a class folder: '{self.tree.root / min(named)}' is named like "
                "a split; wanted one folder of images per class in it, or a metadata.csv with "
                "file_name and label."
            )
        if named:
            logger.warning(
                "%s: %s named like a split, without class folders in it, is taken for a class",
                printable(self.tree.root),
                printable(", ".join(f"'{top}'" for top in sorted(named))),
            )
        inner = {p for path in self.below for p in path[1:-1] if _split_in((p,), _IN_FOLDER)[0]}
        if inner:
            logger.warning(
                "%s: %s inside the class folders are no splits; put them above the classes",
                printable(self.tree.root),
                printable(some([f"'{name}'" for name in sorted(inner)])),
            )

    def _say(self, loose: Counter[str]) -> None:
        """Say what was left out, and where imagefolder has other classes."""
        left = [f"{counted(count, 'image')} loose in '{folder}'" for folder, count in loose.items()]
        outside: Counter[str] = Counter()
        for path, (split, _) in zip(self.tree.images, self.splits, strict=True):
            if not split:
                outside[path[0]] += 1
        left += [
            f"'{top}' ({counted(count, 'image')} beside the splits)"
            for top, count in outside.items()
        ]
        full = {path[:i] for path in self.tree.images for i in range(len(path))}
        depth = 1 + max(place for _, place in self.splits) if self.by_split else 0
        empty = [f for f in self.tree.folders if len(f) == depth + 1 and f not in full]
        left += [f"'{'/'.join(folder)}' (no images in it)" for folder in empty]
        left += self.tree.unread_pictures()
        _say_left_out(self.tree, left)
        nested = sorted({path[-2] for path in self.below if len(path) > 2})
        if nested and len({len(path) for path in self.tree.images}) == 1:
            logger.warning(
                "%s: the class of an image is its top folder, not the innermost (%s) as in "
                "datasets' imagefolder",
                printable(self.tree.root),
                printable(some([f"'{name}'" for name in nested])),
            )


def _split_in(parts: Sequence[str], patterns: dict[str, re.Pattern[str]]) -> tuple[str | None, int]:
    """The split that the first part with the name of one stands for, and its place."""
    for place, part in enumerate(parts):
        for split, pattern in patterns.items():
            if pattern.fullmatch(part):
                return split, place
    return None, -1


def _unpacked(path: Parts) -> Parts:
    """The path below a split's folder without a second one of its name, as archives unpack."""
    return path[1:] if len(path) > 3 and path[0] == path[1] else path


def _tops(paths: Iterable[Parts]) -> set[str]:
    return {path[0] for path in paths if len(path) > 1}


def _inside(paths: list[Parts]) -> list[Parts] | None:
    """The paths less the one folder that holds all other folders; None if there is no such."""
    inner = [path for path in paths if len(path) > 1]
    if not inner or any(len(path) < 3 or path[0] != inner[0][0] for path in inner):
        return None
    return [path[1:] if len(path) > 1 else path for path in paths]


def _alike(by_split: dict[str | None, list[Parts]]) -> dict[str | None, list[Parts]]:
    """The paths of each split less as many folders around all of it as make its classes those of
    the other splits, such as `seg_train` in `seg_train/seg_train/cat` beside `seg_test/seg_test`.
    """
    levels = {split: [paths] for split, paths in by_split.items()}
    for each in levels.values():
        while (inner := _inside(each[-1])) is not None:
            each.append(inner)
    names = {split: set().union(*map(_tops, each)) for split, each in levels.items()}

    def shared(split: str | None, paths: list[Parts]) -> int:
        own = _tops(paths)
        return sum(bool(own & names[other]) for other in names if other != split)

    # the outermost of those that are best
    return {s: max(each, key=lambda paths: shared(s, paths)) for s, each in levels.items()}


def _say_left_out(tree: Tree, left: Sequence[str]) -> None:
    tree.left_out += map(printable, left)
    if left:
        more = f", and {len(left) - 10} more" if left[10:] else ""
        text = printable(", ".join(left[:10]) + more)
        logger.warning("%s: left out %s", printable(tree.root), text)


def _with_classes(root: Path, rows: dict[str, dict[str, list[str]]]) -> dict[str, Dataset]:
    """Split -> class -> paths, as datasets; the classes are those of the training images."""
    reference = "train" if "train" in rows else next(iter(rows))
    names = sorted(rows[reference])
    for classes in rows.values():
        if unknown := sorted(set(classes) - set(names)):
            raise ResiDualError(
                f"'{Path(classes[unknown[0]][0]).parent}' is of the class '{unknown[0]}', which "
                f"the split {reference} of '{root}' does not have; the classes must be those of "
                "the training images."
            )
    alike = Counter(name.casefold() for name in names)
    if twins := [name for name in names if alike[name.casefold()] > 1]:
        logger.warning(
            "%s: the classes %s differ in capitals only",
            printable(root),
            printable(" and ".join(f"'{name}'" for name in twins[:4])),
        )
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    return {
        split: Dataset.from_dict(
            {
                "image": [path for name in names for path in rows[split].get(name, [])],
                "label": [
                    label for label, name in enumerate(names) for _ in rows[split].get(name, [])
                ],
            },
            features=features,
        )
        for split in SPLIT_NAMES
        if split in rows
    }


def _shared_out(base: Path, folders: dict[str, Dataset]) -> dict[str, Dataset]:
    """Rows of metadata at the root, `base`, by splits if all images lie in folders named so."""
    if set(folders) != {"train"}:
        return folders
    whole = folders["train"]
    rows: dict[str | None, list[int]] = {}
    for row, path in enumerate(paths_in(whole)):
        parts = Path(path).relative_to(base).parts[:-1] if path else ()
        rows.setdefault(_split_in(parts, _IN_FOLDER)[0], []).append(row)
    if None in rows or len(rows) == 1:
        return folders
    return {split: whole.select(rows[split]) for split in SPLIT_NAMES if split in rows}
