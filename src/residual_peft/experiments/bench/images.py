"""The images of a registry's entry: its splits, shifted ones, and groups among them."""

import hashlib
from dataclasses import replace
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from ...data import ImageData, load_data
from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError, check_names
from .entries import DataEntry


def load_images(entry: DataEntry) -> ImageData:
    """The images of an entry, with a split to train and one to test on.

    As in `fit`, test images that are training or validation images, too, are left out.

    Raises:
        ResiDualError: as `load_data`; several labels per image; no test image is left.
    """
    shares: dict[str, Any] = {"validation": entry.validation, "test": entry.test}
    found = load_data(
        entry.source,
        config=entry.config,
        revision=entry.revision,
        image_column=entry.image_column,
        label_column=entry.label_column,
        class_names=entry.class_names,
        splits=entry.splits,
        seed=entry.seed,
        **(dict.fromkeys(shares, 0.0) if entry.resplit else shares),
    )
    check_same(ONE_LABEL, found.labelling, "a bench tells one class from the others")
    if entry.resplit:
        images, digests = found.whole()
        whole = replace(found, splits=DatasetDict(train=images), digests={"train": digests})
        found = whole.cut(shares, entry.seed)
    return found.without_repeated()[0]


def load_shifted(entry: DataEntry, own: ImageData) -> Dataset:
    """Test images of another data set, all of it where it has no such split, with a task's classes.

    Training and validation images of the task, `own`, are left out.

    Raises:
        ResiDualError: as `load_data`; a class that the task does not have; no image is left.
    """
    found = load_data(
        entry.source,
        **_as_it_lies(entry),
        label_column=entry.label_column,
        class_names=entry.class_names,
        known_classes=own.class_names,
    )
    check_same(ONE_LABEL, found.labelling, "a bench tells one class from the others")
    check_names(found.class_names, own.class_names, f"a class of {own.source}")
    has_test = "test" in found.splits
    images, digests = (found.test, found.digests["test"]) if has_test else found.whole()
    known = {digest for split in ("train", "validation") for digest in own.digests.get(split, ())}
    images = images.select([row for row, digest in enumerate(digests) if digest not in known])
    if not len(images):
        raise ResiDualError(
            f"all images of '{found.source}' are training images of '{own.source}': no score on "
            "them would mean anything; bring others."
        )
    labels = [own.class_names.index(found.class_names[label]) for label in images["label"]]
    feature = ClassLabel(names=list(own.class_names))
    return images.remove_columns("label").add_column("label", labels, feature=feature)


def subgroups_of(entry: DataEntry, images: ImageData) -> tuple[str, ...]:
    """What a data set's column of groups says of each of its test images.

    Raises:
        ResiDualError: no such column, or none of single values, or numbers without names.
    """
    try:
        found = load_data(
            entry.source,
            **_as_it_lies(entry),
            label_column=entry.subgroups,
            class_names=entry.subgroup_names,
        )
        check_same(ONE_LABEL, found.labelling, "an image is of one group")
    except ResiDualError as error:
        raise ResiDualError(
            f"wanted the groups of images in the column '{entry.subgroups}' (subgroups, and "
            f"subgroup_names for bare numbers), got none: {error}"
        ) from error
    values = {
        digest: found.class_names[value]
        for split, rows in found.splits.items()
        for digest, value in zip(found.digests[split], rows["label"], strict=True)
    }
    return tuple(values[digest] for digest in images.digests["test"])


def _as_it_lies(entry: DataEntry) -> dict[str, Any]:
    """Options of `load_data` for the splits that a source has."""
    options = ("config", "revision", "image_column", "splits", "seed")
    found = {name: getattr(entry, name) for name in options}
    return found | {"validation": 0.0, "test": 0.0}


def split_digest(images: ImageData) -> str:
    """Of which images are trained and tested on, whatever they are called."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(f"{split} {' '.join(sorted(images.digests[split]))}\n".encode())
    return digest.hexdigest()[:32]
