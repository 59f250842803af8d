"""A class head with more images, fewer, or another class, from the sums that were kept of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.images import ImageLike
from ..data.inputs import Images, images_of
from ..data.labels import numbers_of
from ..data.provenance import file_digests
from . import updating
from .outputs import pixel_batches
from .predicting import PredictingClassifier


class ChangeableClassifier(PredictingClassifier):
    """A classifier whose class head can be changed without the old images; see `updating`."""

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
        updating.kept_of(self)  # says before any work what is amiss
        items, single = images_of(images)
        names = self.class_names[: updating.head_of(self).class_count]
        numbers = numbers_of(self.labelling, names, labels, len(items), single=single)
        read = self._read(items, batch_size)
        updating.change(self, read, numbers, forget=forget)
        digests = file_digests(items)
        if forget:
            self.fitted_on = _less(self.fitted_on, digests)
        else:
            self.learned_from(digests)
        return len(items)

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
        updating.kept_of(self)
        items, _ = images_of(images)
        number = updating.add_class(self, name, self._read(items, batch_size), embedding)
        self.learned_from(file_digests(items))
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
        if images is None:
            updating.remove_class(self, name)
            return
        items, _ = images_of(images)
        updating.remove_class(self, name, lambda: self._read(items, batch_size))
        self.fitted_on = _less(self.fitted_on, file_digests(items))

    def _read(self, items: Sequence[ImageLike], batch_size: int) -> updating.Read:
        return updating.Read.of(self, pixel_batches(items, self.image_processor, batch_size))


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
