"""Anything with images and labels -> train, validation and test."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..errors import ResiDualError, printable
from .checking import check_images
from .columns import Options, check_classes, standard_columns, with_class_labels
from .defaults import SHARE
from .folders import CANONICAL_SPLIT, SPLIT_NAMES
from .groups import group_names
from .image_data import ImageData, check_as_cut
from .labels import labelling_in, labelling_of_column
from .labels.columns import label_array
from .provenance import SplitRecord, digest_of, drawn
from .skipped import SkippedImage
from .sources import find

logger = logging.getLogger(__name__)


def load_data(
    source: Any,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    class_names: Iterable[str] | None = None,
    known_classes: Sequence[str] | None = None,
    splits: Mapping[str, str] | None = None,
    validation: Any = SHARE,
    test: Any = SHARE,
    few: int | None = None,
    seed: int = 0,
    strict: bool = False,
    max_bad: float = 0.05,
    unread_classes: bool = False,
    progress: bool | Callable[[int], object] = False,
    revision: str | None = None,
    token: str | None = None,
) -> ImageData:
    """Load images with labels and see to it that they can be trained and tested on.

    A column of lists (of class numbers or class names) gives images several labels, or none. Splits
    that are missing are cut so that each has every label in the same share, in the order of the
    images' content: the same images are cut in the same way whatever their names and wherever they
    come from, and copies of one image stay in one split.

    Every image is looked at once before. Those that cannot be read (empty, cut short, too large,
    no rights) are left out and listed in `ImageData.skipped`.

    Args:
        source: a folder with one folder of images per class (with or without train, validation and
            test folders above them); a CSV, TSV, JSON-lines or parquet file of paths below its
            folder and labels; a zip or tar of any of these; a directory that
            `Dataset.save_to_disk` wrote, a Hub id, a `Dataset` or a `DatasetDict`, a DataFrame, or
            a list of (image, label) pairs, an image being what `to_rgb` takes. A `classes.csv`
            beside the images (name, words, spellings) says what classes are called. An `ImageData`
            is given back as it is, and options that would have it read or cut otherwise are
            refused.
        config: the configuration of a Hub dataset that has several.
        image_column: found by type and name when None.
        label_column: found by type and name when None.
        group_column: images of one value of it stay in one split of those that are cut, and are
            left out together; values that two splits share that the data came in are said. An
            image without a value is a group by itself.
        class_names: names in the order of the labels; needed where labels are bare numbers.
        known_classes: names of a classifier's classes that the data are to be scored by: images of
            one or some of them will do, and labels that are bare numbers are theirs.
        splits: which of the source's splits to use as train, validation and test, such as
            {"train": "train", "test": "validation"}; found by name when None.
        validation: share of the training images to hold out where the source has no validation
            split, 0 for none; or another source, whose images are the validation images.
        test: the same for the test split.
        few: train on so many images of each class, drawn at random, and test on the others; where
            there are test images, on those. There are no validation images then but those of
            another source. None for all.
        seed: of the split, 0 to 2 ** 32 - 1.
        strict: an image that cannot be read is an error.
        max_bad: the share of the images that may be left out as unreadable; three always may.
        unread_classes: whether a class of which no image can be read is kept, to be looked at; it
            is an error for whoever fits.
        progress: a bar while the images are looked at, or a call after each with 1.
        revision: branch, tag or commit on the Hub.
        token: for private datasets.

    Raises:
        ResiDualError: nothing there or nothing reachable, no images, unclear columns, labels
            outside the classes, one class, an empty class, a class too small to split; an option
            that does not fit.
    """
    seed, few = drawn(seed, few)
    if isinstance(source, ImageData):
        check_as_cut(
            source,
            {"validation": validation, "test": test},
            {"few": few, "seed": seed, "group_column": None if known_classes else group_column},
            (config, image_column, label_column, class_names, splits, revision),
        )
        return source
    by_number = class_names is not None
    options = Options(config, revision, token, image_column, label_column, group_column, by_number)
    found = find(source, options)
    name = found.name
    chosen = _choose_splits(found.splits, splits, name)
    own = {"validation": validation, "test": test}
    shares = {part: own.pop(part) for part in list(own) if isinstance(own[part], int | float)}
    listed, chosen = _with_named_sources(chosen, own, options, found.skipped)
    if known_classes and any(group_column not in rows.features for _, rows in chosen.values()):
        options = replace(options, group_column=None)  # no matter, of images that are only scored
    standard = {
        part: standard_columns(rows, options, f"{name}, split {part}")
        for part, (_, rows) in chosen.items()
    }
    standard = standard if found.classes is None else found.classes.applied(standard)
    names, labelled = with_class_labels(standard, class_names, name, known_classes)
    labels = {part: label_array(dataset, len(names)) for part, dataset in labelled.items()}
    if known_classes is None:
        check_classes(labels, names, name)
    limits: dict[str, Any] = {"strict": strict, "max_bad": max_bad, "progress": progress}
    seen, unread = check_images(labelled, name, listed=listed, **limits)
    skipped = (*listed, *(image for rows in unread.values() for image in rows.values()))
    first = _first_of(labels, unread) if skipped else None
    labelled, digests = _readable(chosen, labelled, seen)
    labels = {split: label_array(dataset, len(names)) for split, dataset in labelled.items()}
    if known_classes is None and not (unread_classes and len(np.concatenate([*labels.values()]))):
        check_classes(labels, names, name, first)
    elif skipped and not any(map(len, labels.values())):
        raise ResiDualError(
            f"wanted images, but none of the {len(skipped):,} of {name} can be read, so nothing "
            f"was done; the first is {skipped[0]}. Repair or replace them."
        )
    _say_copies(digests, name)
    groups = group_names(labelled, digests, name) if options.group_column else {}
    labelled = {split: rows.select_columns(["image", "label"]) for split, rows in labelled.items()}
    return ImageData(
        DatasetDict({split: labelled[split] for split in SPLIT_NAMES if split in labelled}),
        names,
        name,
        any(labelling_of_column(d.features["label"]).multi_label for d in labelled.values()),
        SplitRecord(digest_of(_content(labels, names, digests)), group_column=options.group_column),
        skipped,
        digests,
        groups,
        found.left_out,
    ).cut(shares, seed, few, keep=("test", *own))


def _with_named_sources(
    chosen: dict[str, tuple[str, Dataset]],
    sources: Mapping[str, Any],
    options: Options,
    listed: tuple[SkippedImage, ...],
) -> tuple[tuple[SkippedImage, ...], dict[str, tuple[str, Dataset]]]:
    """Splits that a source of its own is named for take the place of those that the data have.

    `chosen` has what to call a part -> its split, and its images; `listed` are files in none.
    """
    for split, source in sources.items():
        try:
            found = find(source, options)
        except ResiDualError as error:
            raise ResiDualError(
                f"wanted a share of the images as {split}, or data: {error}"
            ) from error
        inner = {CANONICAL_SPLIT.get(part, part): rows for part, rows in found.splits.items()}
        rows = inner[split] if split in inner else concatenate_datasets(list(inner.values()))
        chosen = {part: kept for part, kept in chosen.items() if kept[0] != split}
        chosen[f"{split} ({found.name})"] = (split, rows)
        listed = (*listed, *found.skipped)
    return listed, chosen


def _first_of(
    labels: dict[str, npt.NDArray[np.integer]], unread: dict[str, dict[int, SkippedImage]]
) -> Callable[[int], SkippedImage | None]:
    """Class number -> the first of its images that cannot be used, looked for when it is asked for.

    `unread` has by part row -> image of those that cannot.
    """

    def first(number: int) -> SkippedImage | None:
        for part, own in labels.items():
            for row, image in unread[part].items():
                if number in labelling_in(own).class_numbers(own[row]):
                    return image
        return None

    return first


def _readable(
    chosen: dict[str, tuple[str, Dataset]],
    parts: dict[str, Dataset],
    rows: dict[str, dict[int, str]],
) -> tuple[dict[str, Dataset], dict[str, tuple[str, ...]]]:
    """Images and digests of the rows that have a digest, by split.

    Several parts may be one split (see `_choose_splits`), such as "val" and "validation".
    """
    came_in = {part: split for part, (split, _) in chosen.items()}
    images: dict[str, Dataset] = {}
    digests: dict[str, tuple[str, ...]] = {}
    for split in dict.fromkeys(came_in.values()):
        own = [part for part in parts if came_in[part] == split]
        kept = [
            parts[part] if len(rows[part]) == len(parts[part]) else parts[part].select(rows[part])
            for part in own
        ]
        images[split] = kept[0] if len(kept) == 1 else concatenate_datasets(kept)
        digests[split] = tuple(digest for part in own for digest in rows[part].values())
    return images, digests


def _say_copies(digests: dict[str, tuple[str, ...]], name: str) -> None:
    """Say which splits that the data came in share images."""
    for first, second in itertools.combinations(digests, 2):
        own = set(digests[first])
        if count := sum(digest in own for digest in digests[second]):
            logger.warning(
                "%d of the %d images of the split %s of %s are in %s as well",
                count,
                len(digests[second]),
                second,
                printable(name),
                first,
            )


def _content(
    labels: dict[str, npt.NDArray[np.integer]],
    names: tuple[str, ...],
    digests: dict[str, tuple[str, ...]],
) -> Iterator[tuple[str, str, str]]:
    """Split, class or classes and content of every image, for `digest_of`."""
    for split, rows in labels.items():
        for row, digest in zip(rows, digests[split], strict=True):
            own = [names[label] for label in labelling_in(rows).class_numbers(row)]
            yield split, "\x1f".join(sorted(own)), digest


def _choose_splits(
    parts: dict[str, Dataset], splits: Mapping[str, str] | None, name: str
) -> dict[str, tuple[str, Dataset]]:
    """What to call a part in messages -> the split that it belongs to, and its images."""
    if splits is not None:
        if strange := set(splits) - set(SPLIT_NAMES):
            raise ResiDualError(
                f"wanted splits for train, validation, test, got {sorted(strange)}."
            )
        for split in splits.values():
            if split not in parts:
                raise ResiDualError(f"'{name}' has no split '{split}', only {', '.join(parts)}.")
        return {split: (split, parts[own]) for split, own in splits.items()}
    chosen = {
        own: (CANONICAL_SPLIT[own], data) for own, data in parts.items() if own in CANONICAL_SPLIT
    }
    if not chosen and len(parts) == 1:
        return {"train": ("train", next(iter(parts.values())))}
    if not chosen:
        raise ResiDualError(
            f"'{name}' has the splits {', '.join(parts) or 'none'}; say which to use with "
            "splits={'train': ..., 'test': ...}."
        )
    if unused := [own for own in parts if own not in CANONICAL_SPLIT]:
        unused_names = printable(", ".join(unused))
        logger.info("the splits %s of %s are not used", unused_names, printable(name))
    return dict(sorted(chosen.items(), key=lambda item: list(SPLIT_NAMES).index(item[1][0])))
