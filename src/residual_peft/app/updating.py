"""A saved adapter's class head with more labelled images, or with fewer, by name."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..classifiers.backbones import embeddings_of_new
from ..classifiers.changeable import (
    Read,
    add_class_by,
    change_by,
    check_removable,
    note_images,
    remove_class_by,
)
from ..classifiers.kept import checked_statistics, head_of
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import Batches, ImageData, ProcessedImages, SkippedImage, load_data
from ..data.checking import check_skipped
from ..data.labels import ONE_LABEL, check_same
from ..errors import ResiDualError, counted, some
from ..hub.files import path_of, whole_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateReport:
    """What an update did."""

    changed: dict[str, int]  # class -> images added to it, or taken from it
    new: tuple[str, ...]  # classes that the head did not have
    # images that were left out: of an update those that the adapter was fitted on already, of a
    # forgetting those that it was not
    known: int
    skipped: tuple[SkippedImage, ...]  # images that could not be read
    forgot: bool  # whether images were taken out
    removed: str | None = None  # a class that is gone

    def lines(self) -> list[str]:
        """For people."""
        verb, total = "taken out" if self.forgot else "added", sum(self.changed.values())
        each = ", ".join(f"{count} {name}" for name, count in self.changed.items()) or "none"
        found = [f"{counted(total, 'image')} {verb}: {each}"] if total or not self.removed else []
        if self.removed:
            found.append(f"class removed: {self.removed}")
        if self.new:
            classes = "class" if len(self.new) == 1 else "classes"
            found.append(f"new {classes}: {', '.join(self.new)}")
        if self.known:
            why = "not among those it was fitted on" if self.forgot else "known already"
            found.append(f"{counted(self.known, 'image')} left out, {why}")
        if self.skipped:
            found.append(f"{counted(len(self.skipped), 'image')} not read")
        return found


def update_adapter(
    adapter: str | os.PathLike[str],
    data: Any,
    *,
    forget: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    max_bad: float = 0.05,
    strict: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> UpdateReport:
    """Add labelled images to a saved adapter's class head, or take them out, in its directory.

    Equal to a fit of the head on all images at the same basis, scales and strengths, to rounding,
    and reads none of the old ones. Classes that the head does not have become new ones; under class
    names as texts they are put in the adapter's templates. Which images are known is told by their
    content. The directory is written whole or not at all; the record of the fit goes, since it is
    of another adapter.

    It needs statistics (`fit_adapter(..., keep_statistics=True)`). All splits of the data count,
    and one class will do; options are those of `fit_adapter`.

    Raises:
        ResiDualError: no adapter, head or statistics; bad data; a class to forget images of that it
            does not have; all images known, or with `forget` none.
    """
    target = whole_directory(path_of(adapter))
    classifier = ZeroShotClassifier.from_pretrained(target)
    checked_statistics(classifier)  # before images are read
    images = _images(classifier, data, image_column, label_column, max_bad, strict)
    check_same(classifier.labelling, images.labelling, "bring labels like those of its fit")
    _check_names(classifier, images, forget)
    rows, digests = images.whole()
    kept, known = _rows_to_change(classifier, digests, forget)
    if not kept:
        what = "the adapter was fitted on none" if forget else "the adapter was fitted on all"
        raise ResiDualError(
            f"{what} of the {len(digests)} images of '{images.source}': nothing to do."
        )
    dataset = ProcessedImages(rows.select(kept), classifier.image_processor, "the images")
    loader = Batches(dataset, batch_size, num_workers, skip=not strict)
    read = Read.of(classifier, loader, labelled=True, progress=True)
    assert read.index is not None  # Batches give it
    skipped = (*images.skipped, *(SkippedImage(file, why) for _, file, why in loader.skipped))
    check_skipped(skipped, max_bad, images.total, images.source, strict)
    changed, new = _change(classifier, images, read, forget)
    own = [digests[kept[row]] for row in read.index.tolist()]
    note_images(classifier, own, forget=forget)
    classifier.save_pretrained(target)
    return UpdateReport(changed, new, known, skipped, forget)


def remove_class(
    adapter: str | os.PathLike[str],
    name: str,
    data: Any = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    max_bad: float = 0.05,
    strict: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> UpdateReport:
    """Take a class out of a saved adapter, and its images out of the class head, in its directory.

    `data` hold all images of the class that the adapter was fitted on, and maybe others; they are
    not needed where statistics were kept of each class (`keep_statistics="per class"`), nor for a
    class by its text alone. Options are those of `update_adapter`.

    Raises:
        ResiDualError: as `ZeroShotClassifier.remove_class`; data without the class.
    """
    target = whole_directory(path_of(adapter))
    classifier = ZeroShotClassifier.from_pretrained(target)
    if name not in classifier.class_names:
        listed = some(classifier.class_names)
        raise ResiDualError(f"wanted a class of the adapter to remove, {listed}, got '{name}'.")
    check_removable(classifier, name)  # before images are read
    if data is None:
        remove_class_by(classifier, name)
        classifier.save_pretrained(target)
        return UpdateReport({}, (), 0, (), forgot=True, removed=name)
    images = _images(classifier, data, image_column, label_column, max_bad, strict)
    check_same(ONE_LABEL, images.labelling, "bring one label per image")
    rows, digests = images.whole()
    own = [row for row, label in enumerate(rows["label"]) if images.class_names[label] == name]
    kept, known = _rows_to_change(classifier, [digests[row] for row in own], forget=True)
    if not kept:
        raise ResiDualError(
            f"the adapter was fitted on none of the {counted(len(own), 'image')} of '{name}' in "
            f"'{images.source}': nothing was removed."
        )
    kept = [own[row] for row in kept]
    dataset = ProcessedImages(rows.select(kept), classifier.image_processor, "the images")
    read = Read.of(classifier, Batches(dataset, batch_size, num_workers), progress=True)
    remove_class_by(classifier, name, read)
    note_images(classifier, [digests[row] for row in kept], forget=True)
    classifier.save_pretrained(target)
    return UpdateReport({name: len(kept)}, (), known, images.skipped, forgot=True, removed=name)


def _images(
    classifier: ZeroShotClassifier,
    data: Any,
    image_column: str | None,
    label_column: str | None,
    max_bad: float,
    strict: bool,
) -> ImageData:
    """All images of some data, whatever their split."""
    return load_data(
        data,
        image_column=image_column,
        label_column=label_column,
        known_classes=classifier.class_names,
        validation=0,
        test=0,
        max_bad=max_bad,
        strict=strict,
        progress=True,
    )


def _rows_to_change(
    classifier: ZeroShotClassifier, digests: Iterable[str], forget: bool
) -> tuple[list[int], int]:
    """Rows to add or to take out, and how many others there are.

    A content is added once; it is taken out as often as the adapter was fitted on it.
    """
    fitted, every = Counter(classifier.fitted_on), list(digests)
    first = {digest: row for row, digest in reversed(list(enumerate(every)))}
    chosen = [(row, d) for row, d in enumerate(every) if first[d] == row]
    if forget:
        kept = [row for row, digest in chosen for _ in range(fitted[digest])]
    else:
        kept = [row for row, digest in chosen if digest not in fitted]
    return kept, len(every) - len(set(kept))


def _check_names(classifier: ZeroShotClassifier, images: ImageData, forget: bool) -> None:
    """Refuse names that cannot be meant as they are."""
    names = classifier.class_names
    trained = names[: head_of(classifier).class_count]
    folded = {name.casefold(): name for name in names}
    for name in images.class_names:
        if name in trained or (name in names and not forget):
            continue
        if (near := folded.get(name.casefold())) is not None and near != name:
            raise ResiDualError(
                f"the data have a class '{name}', the adapter '{near}': give both one spelling."
            )
        if forget:
            raise ResiDualError(
                f"wanted images of the class head's classes to forget, got some of '{name}'."
            )


def _change(
    classifier: ZeroShotClassifier, images: ImageData, read: Read, forget: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Images of the head's classes at once; then new classes, each with its images."""
    labels, labelling = read.labels, images.labelling
    assert labels is not None
    trained = classifier.class_names[: head_of(classifier).class_count]
    names = images.class_names
    present = labelling.counts(labels, len(names)).tolist()
    changed = {name: count for name, count in zip(names, present, strict=True) if count}
    new = tuple(name for name in changed if name not in trained)
    if new:
        why = f"the old images would need labels of the new class '{new[0]}': fit anew"
        check_same(ONE_LABEL, labelling, why)
    numbers = [trained.index(name) if name in trained else -1 for name in names]
    old = labelling.of_classes(labels, [number >= 0 for number in numbers])
    if old.any():
        own = [labelling.renumbered(row, numbers, len(trained)) for row in labels[old]]
        change_by(classifier, read.some(old), torch.stack(own), forget=forget)
    for name, embedding in zip(new, embeddings_of_new(classifier, new), strict=True):
        add_class_by(classifier, name, read.some(labels == names.index(name)), embedding)
    return changed, new
