"""Anything with images and labels -> train, validation and test."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict

from ..errors import ResiDualError
from .columns import (
    check_classes,
    check_labels,
    has_lists,
    standard_columns,
    with_class_labels,
)
from .sources import CANONICAL_SPLIT, SPLIT_NAMES, find
from .stratification import iterative_split, stratified_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """Labelled images, split.

    Attributes:
        splits: some of "train", "validation" and "test", each with the columns `image` and `label`:
            a ClassLabel, or with `multi_label` a list of it, increasing and perhaps empty.
        class_names: one name per label.
        source: where they came from, for messages and cards.
        multi_label: whether an image may have several labels, or none.
    """

    splits: DatasetDict
    class_names: tuple[str, ...]
    source: str
    multi_label: bool = False

    def __getitem__(self, split: str) -> Dataset:
        if split not in self.splits:
            raise ResiDualError(
                f"'{self.source}' has no split '{split}', only {', '.join(self.splits) or 'none'}."
            )
        return self.splits[split]

    @property
    def train(self) -> Dataset:
        """The images to fit on."""
        return self["train"]

    @property
    def validation(self) -> Dataset:
        """The images to choose by."""
        return self["validation"]

    @property
    def test(self) -> Dataset:
        """The images to report on, never to choose by."""
        return self["test"]


def load_data(
    source: Any,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Iterable[str] | None = None,
    splits: Mapping[str, str] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 42,
    revision: str | None = None,
    token: str | None = None,
) -> ImageData:
    """Load images with labels and see to it that they can be trained and tested on.

    A column of lists (of class numbers or class names) gives images several labels, or none. Splits
    that are missing are cut so that each has every label in the same share.

    Args:
        source: a folder with one folder of images per class (with or without train, validation and
            test folders above them), a directory that `Dataset.save_to_disk` wrote, a Hub id, a
            `Dataset` or a `DatasetDict`.
        config: the configuration of a Hub dataset that has several.
        image_column: found by type and name when None.
        label_column: found by type and name when None.
        class_names: names in the order of the labels; needed where labels are bare numbers.
        splits: which of the source's splits to use as train, validation and test, such as
            {"train": "train", "test": "validation"}; found by name when None.
        validation: share of the training images to hold out where the source has no validation
            split; 0 for none.
        test: the same for the test split.
        seed: of the split.
        revision: branch, tag or commit on the Hub.
        token: for private datasets.

    Raises:
        ResiDualError: nothing there or nothing reachable, no images, unclear columns, labels
            outside the classes, one class, an empty class, a class too small to split.
    """
    if isinstance(source, ImageData):
        return source
    name, found = find(source, config, revision, token)
    chosen = _choose_splits(found, splits, name)
    standard = {
        split: standard_columns(dataset, image_column, label_column, f"{name}, split {split}")
        for split, dataset in chosen.items()
    }
    names, labelled = with_class_labels(standard, class_names, name)
    labels = {split: check_labels(d, names, split, name) for split, d in labelled.items()}
    check_classes(labels, names, name)
    wanted = {"validation": validation, "test": test}
    shares = {s: share for s, share in wanted.items() if share and s not in labelled}
    if "train" in labelled and shares:
        whole = labelled["train"]
        split = iterative_split if has_lists(whole) else stratified_split
        rows = split(labels["train"], shares, seed, names)
        labelled |= {part: whole.select(indices) for part, indices in rows.items()}
    ordered = {split: labelled[split] for split in SPLIT_NAMES if split in labelled}
    several = any(map(has_lists, ordered.values()))
    return ImageData(DatasetDict(ordered), names, name, several)


def _choose_splits(
    found: dict[str, Dataset], splits: Mapping[str, str] | None, name: str
) -> dict[str, Dataset]:
    if splits is not None:
        if strange := set(splits) - set(SPLIT_NAMES):
            raise ResiDualError(
                f"wanted splits for train, validation, test, got {sorted(strange)}."
            )
        for split in splits.values():
            if split not in found:
                raise ResiDualError(f"'{name}' has no split '{split}', only {', '.join(found)}.")
        return {split: found[own] for split, own in splits.items()}
    chosen = {CANONICAL_SPLIT[own]: data for own, data in found.items() if own in CANONICAL_SPLIT}
    if not chosen and len(found) == 1:
        return {"train": next(iter(found.values()))}
    if not chosen:
        raise ResiDualError(
            f"'{name}' has the splits {', '.join(found) or 'none'}; say which to use with "
            "splits={'train': ..., 'test': ...}."
        )
    if unused := [own for own in found if own not in CANONICAL_SPLIT]:
        logger.info("the splits %s of %s are not used", ", ".join(unused), name)
    return chosen
