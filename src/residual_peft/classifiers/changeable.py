"""A class head with more images, fewer, or another class, from the sums that were kept of them."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data.class_names import check_class_names
from ..data.images import ImageLike
from ..data.inputs import Images, images_of
from ..data.labels import ONE_LABEL, check_same, numbers_of
from ..data.provenance import file_digests
from ..errors import ResiDualError, printable
from .backbones import embeddings_of_new
from .headed import HeadedClassifier
from .kept import KeptStatistics, checked_statistics, head_of
from .outputs import pixel_batches
from .predicting import PredictingClassifier
from .trained_head import embedding_features

logger = logging.getLogger(__name__)

_ONE = "the old images would need labels of a new class: fit anew"


@dataclass(frozen=True)
class Read:
    """Images as a head reads them."""

    features: Tensor  # (n, K), on the CPU
    readout: Tensor  # of the unadapted model, of length 1 each (n, d)
    labels: Tensor | None = None  # (n,), or (n, C), where they were asked for
    index: Tensor | None = None  # the images' rows (n,), where the batches know them

    @classmethod
    def of(cls, classifier: HeadedClassifier, batches: Iterable[Any], **options: Any) -> "Read":
        """In memory: K + d numbers an image; options are those of `classified`."""
        coordinates = head_of(classifier).features == "coordinates"
        found = defaultdict(list)
        for seen in classifier.seen(batches, **options):
            readout = embedding_features(seen.readout)
            features = classifier.coordinates(seen) if coordinates else readout
            beside = {"labels": seen.labels, "index": seen.index}
            for name, part in {"features": features, "readout": readout, **beside}.items():
                if part is not None:
                    found[name].append(part.detach().cpu())
        return cls(**{name: torch.cat(parts) for name, parts in found.items()})

    def some(self, rows: Tensor) -> "Read":
        """Features and readouts of some of them."""
        return Read(self.features[rows], self.readout[rows])


class ChangeableClassifier(PredictingClassifier):
    """A classifier whose class head can be changed without the old images; `ZeroShotClassifier`.

    A change is exact, from kept sums (`KeptStatistics`).
    """

    @torch.no_grad()
    def update(self, images: Images, labels: Any, *, batch_size: int = 64) -> int:
        """Add images to the class head; how many there were.

        Equal to a fit from scratch on the same basis, scales, strengths, text weight and
        temperature, to rounding, and without the old images: from kept statistics. Class embeddings
        stay, and so does what is known of left-out images, that of the fit; rows for jackknife+ go,
        and sets by held-out images want `calibrate` anew. With several labels a class is then given
        from a probability of one half on.

        Args:
            images: as for `predict`.
            labels: a name or number of the head's classes for each; with several labels per image a
                list of them for each, or zeros and ones (n, C). Images seen before count again.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: no head or statistics (`fit_adapter(..., keep_statistics=True)` leaves
                them), statistics of another model or basis, or labels that do not suit.
        """
        return self._changed(images, labels, batch_size, forget=False)

    @torch.no_grad()
    def forget(self, images: Images, labels: Any, *, batch_size: int = 64) -> int:
        """Take images out of the class head that it was fitted on; how many there were.

        Head and statistics are then those of a fit from scratch without them, as for `update`. What
        was said of left-out images goes, and with it the sets of `sets`. The bases, and class
        embeddings that are means, keep their share of the images: fit anew where that matters.

        Args:
            images: as for `update`: those very images.
            labels: that they were added with.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; images that cannot have been among those added, as far as
                sums can tell; a class that would be left without any.
        """
        return self._changed(images, labels, batch_size, forget=True)

    def _changed(self, images: Images, labels: Any, batch_size: int, *, forget: bool) -> int:
        checked_statistics(self)  # says before any work what is amiss
        items, single = images_of(images)
        names = self.class_names[: head_of(self).class_count]
        numbers = numbers_of(self.labelling, names, labels, len(items), single=single)
        change_by(self, _read(self, items, batch_size), numbers, forget=forget)
        note_images(self, file_digests(items), forget=forget)
        return len(items)

    @torch.no_grad()
    def add_class(
        self, name: str, images: Images, embedding: Tensor | None = None, *, batch_size: int = 64
    ) -> int:
        """One more class for the class head, from its images alone, as for `predict`; its number.

        Args:
            name: of the class; one that the classifier has by its text alone joins the head.
            images: of the class.
            embedding: of the class (d,), such as a row of `embed_classes`; when None of its text as
                for the others, by the base model loaded anew, or, where classes are means of
                images, of these.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; a name that the head has or no class can have, a base model
                that is not to be had by its name, several labels per image.
        """
        checked_statistics(self)
        if name not in self.class_names:
            check_class_names([*self.class_names, name])
        if embedding is None:
            (embedding,) = embeddings_of_new(self, [name])
        items, _ = images_of(images)
        number = add_class_by(self, name, _read(self, items, batch_size), embedding)
        note_images(self, file_digests(items))
        return number

    @torch.no_grad()
    def remove_class(
        self, name: str, images: Images | None = None, *, batch_size: int = 64
    ) -> None:
        """Take a class out, and its images out of the class head.

        Args:
            name: of the class.
            images: all of its images that the head was fitted on; not needed where statistics were
                kept of each class (`keep_statistics="per class"`), or for a class by its text.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; no such class, fewer than two left, or other images.
        """
        check_removable(self, name)
        if images is None:
            return remove_class_by(self, name)
        items = images_of(images)[0]
        in_head = self.head is not None and self.class_names.index(name) < self.head.class_count
        remove_class_by(self, name, _read(self, items, batch_size) if in_head else None)
        note_images(self, file_digests(items), forget=True)


def change_by(
    classifier: HeadedClassifier, read: Read, labels: Tensor, *, forget: bool = False
) -> None:
    """As `update` or `forget`, by images read and labels (n,), or (n, C) zeros and ones."""
    kept = checked_statistics(classifier)
    features = read.features[:, kept.columns]
    with _naming(classifier.class_names):
        (kept.sums.forget if forget else kept.sums.add)(features, labels)
    _put(classifier, kept, keeps_scores=not forget)


def add_class_by(
    classifier: HeadedClassifier, name: str, read: Read, embedding: Tensor | None = None
) -> int:
    """As `add_class`, by images read."""
    kept, number = checked_statistics(classifier), head_of(classifier).class_count
    check_same(ONE_LABEL, classifier.labelling, _ONE)
    names, rows = list(classifier.class_names), classifier.class_embeddings
    if name in names[:number]:
        raise ResiDualError(f"the class head has the class '{name}' already: update it instead.")
    if name in names:
        place = names.index(name)
        own = rows[place]
        names.pop(place)
        rows = torch.cat([rows[:place], rows[place + 1 :]])
        embedding = own if embedding is None else embedding
    elif embedding is None and classifier.templates:
        raise ResiDualError(
            f"wanted an embedding of '{name}' beside those of the other classes' texts: give "
            "embedding=, such as a row of embed_classes."
        )
    elif embedding is None:
        embedding = read.readout.double().mean(0)
    row = torch.as_tensor(embedding).detach().reshape(1, -1).to(rows)
    if row.shape[1] != rows.shape[1] or not row.isfinite().all() or not row.any():
        raise ResiDualError(
            f"wanted an embedding of {rows.shape[1]} finite numbers, got {tuple(row.shape)}."
        )
    names.insert(number, name)
    checked = check_class_names(names)
    kept.sums.add_class(read.features[:, kept.columns])
    rows = torch.cat([rows[:number], functional.normalize(row, dim=1), rows[number:]])
    _put(classifier, kept, classes=(checked, rows))
    return number


def remove_class_by(classifier: HeadedClassifier, name: str, read: Read | None = None) -> None:
    """As `remove_class`, by images read."""
    check_removable(classifier, name)
    names, rows, head = classifier.class_names, classifier.class_embeddings, classifier.head
    place = names.index(name)
    others = torch.arange(len(names), device=rows.device) != place
    classes = (tuple(each for each in names if each != name), rows[others])
    if head is None or place >= head.class_count:
        classifier.class_names, classifier.class_embeddings = classes
        return
    kept = checked_statistics(classifier)
    with _naming(names):
        kept.sums.remove_class(place, None if read is None else read.features[:, kept.columns])
    _put(classifier, kept, classes=classes)
    if read is None and classifier.fitted_on:
        logger.info(
            "the images of '%s' still count as known: `update` leaves them out, and no score is of "
            "them. With its images given they do not.",
            printable(name),
        )


def check_removable(classifier: HeadedClassifier, name: str) -> None:
    """Raise a ResiDualError for a class that `remove_class` cannot take out at all."""
    names, head = classifier.class_names, classifier.head
    if name not in names or len(names) < 3:
        raise ResiDualError(
            f"wanted one of {len(names)} classes to remove, and two to be left, got '{name}'."
        )
    if head is None or names.index(name) >= head.class_count:
        return
    checked_statistics(classifier)
    check_same(ONE_LABEL, classifier.labelling, _ONE)
    if head.class_count < 3:
        raise ResiDualError("wanted a class head of two classes to be left, got one: fit anew.")


def note_images(
    classifier: HeadedClassifier, digests: Sequence[str], *, forget: bool = False
) -> None:
    """Note images that came after the fit, its test images maybe among them, or that are gone."""
    if forget:  # of an image that was added twice, one copy may stay
        left = Counter(classifier.fitted_on) - Counter(digests)
        classifier.fitted_on = tuple(left.elements())
        return
    classifier.fitted_on = (*classifier.fitted_on, *digests)
    if classifier.split is not None:
        classifier.split = replace(classifier.split, updated=True)


def _read(classifier: HeadedClassifier, items: Sequence[ImageLike], batch_size: int) -> Read:
    return Read.of(classifier, pixel_batches(items, classifier.image_processor, batch_size))


def _put(
    classifier: HeadedClassifier,
    kept: KeptStatistics,
    *,
    classes: tuple[tuple[str, ...], Tensor] | None = None,
    keeps_scores: bool = False,
) -> None:
    """Take the head of the sums as they are now, and with it other classes."""
    # thresholds were of the logits before
    head = replace(kept.changed(head_of(classifier)), thresholds=None)
    if not keeps_scores:  # of images that are gone, or of other classes
        head = replace(head, left_out_scores=None, known=None)
    if classes is not None:
        classifier.class_names, classifier.class_embeddings = classes
    classifier.set_head(head, statistics=kept)


@contextmanager
def _naming(names: Sequence[str]) -> Iterator[None]:
    """What the sums call "class 2" has a name."""

    def named(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"class '{names[number]}'" if number < len(names) else match[0]

    try:
        yield
    except ResiDualError as error:
        raise ResiDualError(re.sub(r"class (\d+)\b", named, str(error))) from error
