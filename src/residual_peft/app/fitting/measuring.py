"""On which images a saved adapter is measured, and which of them it was fitted on."""

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, ProcessedImages, SkippedImage, load_data
from ...data.checking import check_skipped
from ...data.defaults import SHARE
from ...data.labels import check_same
from ...data.provenance import SplitRecord
from ...errors import ResiDualError, counted

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Measuring:
    """How the images that an adapter is measured on, or explained, are chosen and read."""

    # "train", "validation", "test" or "all"; "test" of the data of its fit, and "all" of other
    # data, when None
    split: str | None = None
    seed: int | None = None  # of the splits; the adapter's own when None
    image_column: str | None = None  # of the data, found when None
    label_column: str | None = None  # likewise
    max_bad: float = 0.05  # the share of the images that may be unreadable; they are left out
    strict: bool = False  # an unreadable image is an error
    batch_size: int = 64  # images per forward pass
    # processes that decode images; None for as many as suit the machine
    num_workers: int | None = None
    device: str | None = None  # where the model runs; the CPU when None

    @property
    def reading(self) -> dict[str, Any]:
        """For `batches` and what takes the same."""
        names = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        return {**names, "skip": not self.strict}


@dataclass(frozen=True)
class Chosen:
    """The images that an adapter is measured on."""

    images: ProcessedImages  # as its model takes them, labels numbered as its classes
    split: str  # "train", "validation", "test" or "all"
    # whether they are of the data that the adapter was fitted on; None where that is not known
    data_of_fit: bool | None
    left_out: int  # images that it was trained or chosen on, and are not among these
    trained_on: int  # those that are, because they were asked for by name
    skipped: tuple[SkippedImage, ...]  # images that could not be read
    total: int  # images that the data have, unreadable ones included

    def __len__(self) -> int:
        return len(self.images)

    def without(self, missed: Sequence[tuple[int, str, str]], max_bad: float) -> "Chosen":
        """The same less images that only decoding found unreadable: row, file and reason of each.

        Raises:
            ResiDualError: there are too many of them.
        """
        if not missed:
            return self
        skipped = (*self.skipped, *(SkippedImage(file, reason) for _, file, reason in missed))
        rows = set(range(len(self.images))) - {row for row, _, _ in missed}
        left = copy(self.images)
        left.dataset = left.dataset.select(sorted(rows))
        check_skipped(skipped, max_bad, self.total, self.images.name)
        return replace(self, images=left, skipped=skipped)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: which images these are."""
        data = {True: "the data of its fit", False: "other data", None: "not known"}
        found: dict[str, Any] = {
            "images": len(self),
            "split": self.split,
            "data": data[self.data_of_fit],
            "left_out_as_trained_on": self.left_out,
            "skipped_as_unreadable": len(self.skipped),
        }
        return found | ({"trained_on": self.trained_on} if self.trained_on else {})


def choose_images(classifier: ZeroShotClassifier, data: Any, **options: Any) -> Chosen:
    """The images to measure or explain a saved adapter on, as honestly as its record allows.

    Of the data of its fit (equal in content, whatever the files are called) the test images as they
    were cut then, with the adapter's seed and shares. Other data are taken whole. Images that the
    adapter was trained or chosen on, by content, are left out and counted, except where the
    training or validation images of its own fit are asked for by name.

    Data are what `load_data` takes, and options those of `Measuring`.

    Raises:
        ResiDualError: bad data, a class that the adapter does not know, splits that are not those
            of its fit, or no image that it was not fitted on.
    """
    asked = Measuring(**options)
    if asked.split is not None and asked.split not in SPLITS:
        listed = ", ".join(SPLITS[:3])
        raise ResiDualError(f"wanted the split {listed} or all, got '{asked.split}'.")
    usual = SplitRecord("", shares={"validation": SHARE, "test": SHARE})  # where nothing is known
    record = classifier.split or usual
    images = load_data(
        data,
        image_column=asked.image_column,
        label_column=asked.label_column,
        group_column=record.group_column,
        known_classes=classifier.class_names,
        validation=0,
        test=0,
        max_bad=asked.max_bad,
        strict=asked.strict,
        progress=True,
    )
    numbers = class_numbers(images, classifier)
    own = None if classifier.split is None else images.split.digest == record.digest
    part = asked.split or ("all" if own is False else "test")
    if own or part != "all":  # else they are taken whole, however few they are
        shares = {part: record.shares.get(part, 0.0) for part in ("validation", "test")}
        seed = record.seed if asked.seed is None else asked.seed
        images = images.cut(shares, seed, record.few if own else 0)
    if own:
        _check_split(images.split, record, asked.seed)
    _say_what_is_unknown(classifier, own, record)
    rows, digests = images.whole() if part == "all" else (images[part], images.digests.get(part))
    trained = set(classifier.fitted_on)
    if own:
        trained |= {d for s in ("train", "validation") for d in images.digests.get(s, ())}
    seen = [row for row, digest in enumerate(digests or ()) if digest in trained]
    by_name = bool(own) and part in ("train", "validation")
    if seen and not by_name:
        rows = _without(rows, seen, images, part)
    title = "the data" if part == "all" else f"the split '{part}'"
    return Chosen(
        images=Renumbered(rows, classifier, title, numbers),
        split=part,
        data_of_fit=own,
        left_out=0 if by_name else len(seen),
        trained_on=len(seen) if by_name else 0,
        skipped=images.skipped,
        total=images.total,
    )


def _check_split(split: SplitRecord, record: SplitRecord, seed: int | None) -> None:
    """Refuse splits of an adapter's own data that are not those of its fit."""
    cut = record.shares or record.few
    if not cut or (split.seed, split.shares) == (record.seed, record.shares):
        if record.tested in ("", split.tested):
            return
        by = "" if record.group_column is None else f", by the groups in '{record.group_column}'"
        raise ResiDualError(
            f"the adapter was fitted on these images{by}, and as they are given here others would "
            "be test images, some that it was trained on among them. Give the data as for the fit"
            f"{', with that column' if by else ''}."
        )
    if seed is not None:
        raise ResiDualError(
            f"the adapter was fitted on these images, split with seed {record.seed}; with seed "
            f"{split.seed} it would be measured on images that it was trained on. Leave the seed "
            "out: the adapter knows its own."
        )
    raise ResiDualError(
        "the adapter was fitted on these images, and these are split in another way (seed "
        f"{split.seed}, shares {split.shares}) than for its fit (seed {record.seed}, shares "
        f"{record.shares}); give the folder, id or Dataset instead, which is split like then."
    )


def _say_what_is_unknown(
    classifier: ZeroShotClassifier, data_of_fit: bool | None, record: SplitRecord
) -> None:
    if data_of_fit is None:
        logger.warning(
            "the adapter does not say how the images of its fit were shared out: the split is cut "
            "with the usual seed and shares, and may hold images that it was trained on."
        )
    elif data_of_fit and record.updated and not classifier.fitted_on:
        logger.warning(
            "the adapter learned from more images after its fit, and which is not known here "
            "(run/fitted_on.txt is never pushed): some of these test images may be among them."
        )
    elif not data_of_fit and not classifier.fitted_on:
        logger.warning(
            "these are not the data of the adapter's fit, and which images it was fitted on is not "
            "known here (run/fitted_on.txt is never pushed): some of these may be among them."
        )


def _without(rows: Dataset, trained_on: Sequence[int], images: ImageData, part: str) -> Dataset:
    """The rows that the adapter was not fitted on; says how many it was."""
    if len(trained_on) == len(rows):
        raise ResiDualError(
            f"the adapter was trained or chosen on all {len(rows)} images of '{images.source}' "
            f"(split {part}): no score of it would mean anything. Bring images that are new to it."
        )
    logger.warning(
        "%s of %d left out: the adapter was trained or chosen on them.",
        counted(len(trained_on), "image"),
        len(rows),
    )
    left_out = set(trained_on)
    return rows.select([row for row in range(len(rows)) if row not in left_out])


class Renumbered(ProcessedImages):
    """Images as a classifier's model takes them, with the numbers of its classes.

    `numbers` has that of each of the data's classes; None where they are the same.
    """

    def __init__(
        self, dataset: Dataset, classifier: ZeroShotClassifier, name: str, numbers: list[int] | None
    ) -> None:
        super().__init__(dataset, classifier.image_processor, name)
        self.numbers, self.of_adapter = numbers, len(classifier.class_names)
        self.class_names = classifier.class_names

    def _read(self, index: int) -> dict[str, Any]:
        item = super()._read(index)
        if self.numbers is None:
            return item
        labels = self.labelling.renumbered(item["labels"], self.numbers, self.of_adapter)
        return item | {"labels": labels}


def class_numbers(images: ImageData, classifier: ZeroShotClassifier) -> list[int] | None:
    """Of each of the data's classes, its number among a classifier's, found by name.

    None where they are the same; -1 for a name that neither the classifier nor any image has.

    Raises:
        ResiDualError: images of a class that it does not know, or another kind of labels.
    """
    known = classifier.class_names
    check_same(classifier.labelling, images.labelling, "bring labels like those of its fit")
    if images.class_names == known:
        return None
    entries = (entry for rows in images.splits.values() for entry in rows["label"])
    present = set(images.labelling.each(entries))
    names = enumerate(images.class_names)
    if strange := [name for n, name in names if name not in known and n in present]:
        raise ResiDualError(
            f"wanted data with the adapter's classes ({_listed(known)}), got images of "
            f"{_listed(strange)}, which it does not know; leave those out, or fit with them."
        )
    return [known.index(name) if name in known else -1 for name in images.class_names]


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
