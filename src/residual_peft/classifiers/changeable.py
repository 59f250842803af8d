"""A class head with more images, fewer, or another class, from the sums that were kept of them."""

import re
from collections import Counter
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
from ..errors import ResiDualError
from .headed import HeadedClassifier
from .kept import HOW, KeptStatistics, head_of
from .outputs import pixel_batches
from .predicting import PredictingClassifier
from .trained_head import embedding_features


@dataclass(frozen=True)
class Read:
    """Images as a head reads them."""

    features: Tensor  # (n, K), on the CPU
    readout: Tensor  # of the unadapted model, of length 1 each (n, d)

    @classmethod
    def of(cls, classifier: HeadedClassifier, batches: Iterable[Any]) -> "Read":
        """In memory: K + d numbers an image."""
        found, readout = [], []
        for seen, features in classifier.head_features(batches):
            found.append(features.detach().cpu())
            readout.append(embedding_features(seen.readout).detach().cpu())
        return cls(torch.cat(found), torch.cat(readout))

    def some(self, rows: Tensor) -> "Read":
        """Some of them."""
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
        self.checked_statistics()  # says before any work what is amiss
        items, single = images_of(images)
        names = self.class_names[: head_of(self).class_count]
        numbers = numbers_of(self.labelling, names, labels, len(items), single=single)
        self.change_by(self._read(items, batch_size), numbers, forget=forget)
        digests = file_digests(items)
        if forget:
            self.fitted_on = _less(self.fitted_on, digests)
        else:
            self.learned_from(digests)
        return len(items)

    def checked_statistics(self) -> KeptStatistics:
        """The statistics; refused where there are none, or those of another model or head."""
        head, kept = head_of(self), self.statistics
        if kept is None:
            raise ResiDualError(
                f"the class head ({head.method or 'of an unknown fit'}) has no statistics of its "
                f"images, without which it can only be fitted anew: {HOW}."
            )
        kept.check(self)
        return kept

    def change_by(self, read: Read, labels: Tensor, *, forget: bool = False) -> None:
        """As `update` or `forget`, by images read and labels (n,), or (n, C) zeros and ones."""
        kept = self.checked_statistics()
        features = read.features[:, kept.columns]
        with self._naming():
            (kept.sums.forget if forget else kept.sums.add)(features, labels)
        self._put(kept, keeps_scores=not forget)

    def learned_from(self, digests: Sequence[str]) -> None:
        """Note images that came after the fit: its test images may be among them."""
        self.fitted_on = (*self.fitted_on, *digests)
        self.split = None if self.split is None else replace(self.split, updated=True)

    @torch.no_grad()
    def add_class(
        self, name: str, images: Images, embedding: Tensor | None = None, *, batch_size: int = 64
    ) -> int:
        """One more class for the class head, from its images alone, as for `predict`; its number.

        Args:
            name: of the class; one that the classifier has by its text alone joins the head.
            images: of the class.
            embedding: of the class (d,), such as a row of `embed_classes`. None where classes are
                means of images (it is that of these), or where the classifier has it.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `update`; a name that the head has, no embedding where one is needed,
                several labels per image.
        """
        self.checked_statistics()
        items, _ = images_of(images)
        number = self.add_class_by(name, self._read(items, batch_size), embedding)
        self.learned_from(file_digests(items))
        return number

    def add_class_by(self, name: str, read: Read, embedding: Tensor | None = None) -> int:
        """As `add_class`, by images read."""
        kept, number = self.checked_statistics(), head_of(self).class_count
        self._check_one_label()
        names, rows = list(self.class_names), self.class_embeddings
        if name in names[:number]:
            raise ResiDualError(
                f"the class head has the class '{name}' already: update it instead."
            )
        if name in names:
            place = names.index(name)
            own = rows[place]
            names.pop(place)
            rows = torch.cat([rows[:place], rows[place + 1 :]])
            embedding = own if embedding is None else embedding
        elif embedding is None and self.templates:
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
        self._put(kept, classes=(checked, rows))
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
        items = None if images is None else images_of(images)[0]
        names, rows = self.class_names, self.class_embeddings
        if name not in names or len(names) < 3:
            raise ResiDualError(
                f"wanted one of {len(names)} classes to remove, and two to be left, got '{name}'."
            )
        place, head = names.index(name), self.head
        others = torch.arange(len(names), device=rows.device) != place
        classes = (tuple(each for each in names if each != name), rows[others])
        if head is None or place >= head.class_count:
            self.class_names, self.class_embeddings = classes
        else:
            kept = self.checked_statistics()
            self._check_one_label()
            if head.class_count < 3:
                raise ResiDualError(
                    "wanted a class head of two classes to be left, got one: fit anew."
                )
            features = None
            if items is not None:
                features = self._read(items, batch_size).features[:, kept.columns]
            with self._naming():
                kept.sums.remove_class(place, features)
            self._put(kept, classes=classes)
        if items is not None:
            self.fitted_on = _less(self.fitted_on, file_digests(items))

    def _read(self, items: Sequence[ImageLike], batch_size: int) -> Read:
        return Read.of(self, pixel_batches(items, self.image_processor, batch_size))

    def _put(
        self,
        kept: KeptStatistics,
        *,
        classes: tuple[tuple[str, ...], Tensor] | None = None,
        keeps_scores: bool = False,
    ) -> None:
        """Take the head of the sums as they are now, and with it other classes."""
        # thresholds were of the logits before
        head = replace(kept.changed(head_of(self)), thresholds=None)
        if not keeps_scores:  # of images that are gone, or of other classes
            head = replace(head, left_out_scores=None, known=None)
        if classes is not None:
            self.class_names, self.class_embeddings = classes
        self.set_head(head, statistics=kept)

    def _check_one_label(self) -> None:
        why = "the old images would need labels of a new class: fit anew"
        check_same(ONE_LABEL, self.labelling, why)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What the sums call "class 2" has a name."""
        try:
            yield
        except ResiDualError as error:
            names = self.class_names

            def named(match: re.Match[str]) -> str:
                number = int(match[1])
                return f"class '{names[number]}'" if number < len(names) else match[0]

            raise ResiDualError(re.sub(r"class (\d+)\b", named, str(error))) from error


def _less(digests: Sequence[str], gone: Sequence[str]) -> tuple[str, ...]:
    """Some digests without others: of an image that was added twice, one copy may stay."""
    left = Counter(gone)
    kept = []
    for digest in digests:
        if left[digest]:
            left[digest] -= 1
        else:
            kept.append(digest)
    return tuple(kept)
