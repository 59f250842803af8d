"""The images of a registry's entry, shifted ones, and groups; which of them one run is of."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torch import Tensor

from ...data import ImageData, load_data
from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError, check_names
from .entries import DataEntry, Protocol

_ONE_CLASS = "a bench tells one class from the others"


def load_images(entry: DataEntry) -> ImageData:
    """The images of an entry, with a split to train and one to test on.

    As in `fit`, test images that are training or validation images, too, are left out.

    Raises:
        ResiDualError: as `load_data`; several labels per image; no test image is left.
    """
    shares: dict[str, Any] = {"validation": entry.validation, "test": entry.test}
    found = _load(entry, _ONE_CLASS, **({} if entry.resplit else shares))
    if entry.resplit:
        images, digests = found.whole()
        whole = replace(found, splits=DatasetDict(train=images), digests={"train": digests})
        found = whole.cut(shares, entry.seed)
    return found.without_repeated()[0]


def load_shifted(entry: DataEntry, task: ImageData) -> Dataset:
    """Test images of another data set, all of it where it has no such split, with a task's classes.

    Training and validation images of the `task` are left out.

    Raises:
        ResiDualError: as `load_data`; a class that the task does not have; no image is left.
    """
    found = _load(entry, _ONE_CLASS, known_classes=task.class_names)
    check_names(found.class_names, task.class_names, f"a class of {task.source}")
    has_test = "test" in found.splits
    images, digests = (found.test, found.digests["test"]) if has_test else found.whole()
    known = {digest for split in ("train", "validation") for digest in task.digests.get(split, ())}
    images = images.select([row for row, digest in enumerate(digests) if digest not in known])
    if not len(images):
        raise ResiDualError(
            f"all images of '{found.source}' are training images of '{task.source}': no score on "
            "them would mean anything; bring others."
        )
    labels = [task.class_names.index(found.class_names[label]) for label in images["label"]]
    feature = ClassLabel(names=list(task.class_names))
    return images.remove_columns("label").add_column("label", labels, feature=feature)


def subgroups_of(entry: DataEntry, images: ImageData) -> tuple[str, ...]:
    """What a data set's column of groups says of each of its test images.

    Raises:
        ResiDualError: no such column, or none of single values, or numbers without names.
    """
    try:
        columns = {"label_column": entry.subgroups, "class_names": entry.subgroup_names}
        found = _load(entry, "an image is of one group", **columns)
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


def _load(entry: DataEntry, why: str, **options: Any) -> ImageData:
    """What an entry names, of one label per image, in the splits that it has unless told."""
    fields = ("config", "revision", "image_column", "label_column", "class_names", "splits", "seed")
    own = {name: getattr(entry, name) for name in fields} | {"validation": 0.0, "test": 0.0}
    found = load_data(entry.source, **own | options)
    check_same(ONE_LABEL, found.labelling, why)
    return found


def split_digest(images: ImageData) -> str:
    """Of which images are trained and tested on, whatever they are called."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(f"{split} {' '.join(sorted(images.digests[split]))}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Draw:
    """Training images and classes of one seed."""

    rows: Tensor  # training images, numbers in the training split, by class
    classes: Tensor  # numbers of the classes that are trained on, increasing
    novel: Tensor  # those of the others
    validation: Tensor = field(default_factory=lambda: torch.arange(0))  # images to choose by

    @property
    def learned(self) -> Tensor:
        """Training images, then those to choose by."""
        return torch.cat([self.rows, self.validation])


def draw(protocol: Protocol, labels: Tensor, class_count: int, seed: int) -> Draw:
    """The images and classes of one run, the same in every run with this seed.

    Labels are those of the training split (N,).

    Raises:
        ResiDualError: fewer than four classes to halve.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, novel = torch.arange(class_count), torch.arange(0)
    if protocol.kind == "base-to-novel":
        if class_count < 4:
            raise ResiDualError(
                f"wanted four classes or more to train on half of them, got {class_count}: leave "
                "the protocol out for this data set."
            )
        order = torch.randperm(class_count, generator=generator)
        half = -(-class_count // 2)
        classes, novel = order[:half].sort().values, order[half:].sort().values
    if protocol.shots is None:
        return Draw(torch.isin(labels, classes).nonzero().flatten(), classes, novel)
    drawn, beside, last = [], [], protocol.shots + (protocol.validation_shots or 0)
    for label in classes:
        index = (labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        drawn.append(index[: protocol.shots])
        beside.append(index[protocol.shots : last])
    return Draw(torch.cat(drawn), classes, novel, torch.cat(beside))


def needed(protocols: Iterable[Protocol], labels: Tensor, class_count: int) -> Tensor:
    """Training images that any of some protocols draws: increasing numbers in their split."""
    found = [torch.arange(0)]
    for protocol in protocols:
        for seed in protocol.seeds:
            with suppress(ResiDualError):  # what cannot be drawn is said where it is run
                found.append(draw(protocol, labels, class_count, seed).learned)
    return torch.cat(found).unique()


def drawn_at_most(
    protocol: Protocol, train: int, class_count: int | None
) -> tuple[int, int] | None:
    """Images of a draw to train on, and to choose by; None where classes are not known."""
    halves = protocol.kind == "base-to-novel"
    if protocol.shots is None:
        return (-(-train // 2) if halves else train), 0
    if class_count is None:
        return None
    classes = -(-class_count // 2) if halves else class_count
    beside = (protocol.validation_shots or 0) * classes  # classes with few images have fewer
    return min(train, protocol.shots * classes), min(train, beside)


def most_needed(protocols: Iterable[Protocol], train: int, class_count: int | None) -> int | None:
    """How many images `needed` has at most; None where classes are to be counted and are unknown.

    Draws of one kind and seed hold each other: their images are those of the largest. `train` is
    how many the training split has.
    """
    drawn: dict[tuple[str, int], int] = {}
    for protocol in protocols:
        if protocol.kind == "full":
            return train
        if (counts := drawn_at_most(protocol, train, class_count)) is None:
            return None
        # half of the classes may have all images but one
        most = train if protocol.shots is None else sum(counts)
        for place in ((protocol.kind, seed) for seed in protocol.seeds):
            drawn[place] = max(drawn.get(place, 0), most)
    return min(train, sum(drawn.values()))
