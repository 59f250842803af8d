"""A class head beside the class embeddings, and what a classifier says of images."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..bases.reading import ReadBatch, reading
from ..bases.rows import Rows
from ..data.images import ImageLike
from ..data.inputs import Images, images_of
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..tuner import (
    adapted_tower,
    base_of,
    basis_digest,
    compose,
    coordinates_of,
    gains_of,
    readout_state,
)
from .cosines import CosineClassifier
from .heads.conformal import PredictionSets
from .outputs import pixel_batches
from .predictions import predictions_of
from .trained_head import TrainedHead, check_head, embedding_features
from .updating import KeptStatistics


class HeadedClassifier(CosineClassifier):
    """A classifier that may have a class head, and predicts; see `ZeroShotClassifier`."""

    _head: TrainedHead | None = None
    _statistics: KeptStatistics | Callable[[], KeptStatistics] | None = None

    @property
    def head(self) -> TrainedHead | None:
        """The class head, if there is one; setting it is `set_head`."""
        return self._head

    @head.setter
    def head(self, head: TrainedHead | None) -> None:
        self.set_head(head)

    def set_head(
        self,
        head: TrainedHead | None,
        adapter_name: str | None = None,
        *,
        statistics: KeptStatistics | None = None,
    ) -> None:
        """Let a class head decide between the first of the classes.

        Args:
            head: None for texts and gains alone.
            adapter_name: whose coordinates it reads; None for the active adapter.
            statistics: its very sums, where there are any; they are taken as they are.

        Raises:
            ResiDualError: it has more classes, or reads another number of features: it is of
                another basis, or the model has no such adapter.
        """
        if head is not None:
            check_head(head, len(self.class_names))
            columns = self.class_embeddings.shape[1]
            if head.features == "coordinates":
                columns = len(readout_state(self.model, adapter_name).directions)
            if len(head.head.mean) != columns:
                raise ResiDualError(
                    f"the class head reads {len(head.head.mean)} {head.features}, the model gives "
                    f"{columns}: it is of another basis, other units or another model."
                )
            head = head.to(self.device)
        self._head, self._statistics = head, statistics

    @property
    def thresholds(self) -> Tensor | None:
        """With several labels per image, the logit from which on one has a class (C,), on the CPU.

        None where that is 0, a probability of one half, for all.
        """
        own = None if self.head is None else self.labelling.own_thresholds(self.head.thresholds)
        if own is None:
            return None
        return functional.pad(own.cpu(), (0, len(self.class_names) - len(own)))

    @property
    def statistics(self) -> KeptStatistics | None:
        """The sums of the class head's images, read from disk when they are first asked for.

        Another head has none of its own until they are set.
        """
        if callable(self._statistics):
            self._statistics = self._statistics()
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: KeptStatistics | None) -> None:
        if statistics is not None:
            statistics.check(self)
        self._statistics = statistics

    def basis_of_head(self) -> str | None:
        """The digest of the basis that the head's coordinates are in."""
        if self.head is None or self.head.features == "embedding":
            return None
        return basis_digest(self.model)

    @torch.no_grad()
    def predict_logits(self, images: Images, *, batch_size: int = 64) -> Tensor:
        """Logits (N, C) of one or many images, on the CPU.

        Args:
            images: as for `predict`.
            batch_size: images per forward pass.
        """
        return self._answers_of(images_of(images)[0], batch_size)[0]

    @torch.no_grad()
    def _answers_of(
        self, items: Sequence[ImageLike], batch_size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (N, C), and how like the head's images they are (N,) where it can tell."""
        logits, like = Rows(len(items)), Rows(len(items))
        for seen, part in self.classified(pixel_batches(items, self.image_processor, batch_size)):
            logits.add(part)
            if (values := self.alike(seen)) is not None:
                like.add(values)
        return logits.joined(), like.joined() if len(like) else None

    def alike(self, batch: ReadBatch) -> Tensor | None:
        """`Prediction.alike` of a batch that `classified` gave (B,); None where nothing tells it.

        A class head that was fitted on all of the classes, with one label per image, does.
        """
        head = self.head
        if head is None or head.known is None or head.class_count != len(self.class_names):
            return None
        return head.known.p_values(embedding_features(batch.readout))

    def classified(
        self, batches: Iterable[Any], **options: Any
    ) -> Iterator[tuple[ReadBatch, Tensor]]:
        """Batches of images, what was seen of each, and its logits (B, C) with adapter and head.

        Args:
            batches: as for `reading`.
            options: of `reading`: `labelled`, `progress`, `description`.
        """
        head = self.head
        if head is not None and head.features == "coordinates":
            tower: TowerAnatomy | None = adapted_tower(self.model)
            options |= {"taps": True, "check": "first"}
        else:
            tower = None
            options |= {"adapters": head is None}
        for seen in reading(self.model, tower, batches, **options):
            yield seen, self.answer_to(seen.readout, seen.capture)

    def answer_to(self, readout: Tensor, capture: Capture | None = None) -> Tensor:
        """Logits (B, C) from one run of the tower.

        Args:
            readout: (B, d), with adapters where there is neither a capture nor a class head.
            capture: what the taps saw of the unadapted model; None where no head reads coordinates.
        """
        if capture is None:
            return self.answer(readout, readout)
        state, gains = readout_state(self.model), gains_of(self.model).detach()
        found = coordinates_of(state, capture)
        adapted = compose(state, base_of(state, readout), found, gains)
        return self.answer(adapted, readout, found)

    def answer(self, adapted: Tensor, readout: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Logits (B, C), the class head's where there is one.

        Args:
            adapted: readouts with the gains (B, d).
            readout: those of the unadapted model (B, d), from which a head on the embedding and
                the texts beside it take all they know.
            coordinates: in the active adapter's basis (B, K); None where no head reads them.
        """
        head = self.head
        if head is None:
            return self.logits(adapted)
        if head.features == "embedding":
            features = embedding_features(readout)
            return head.logits(self.logits(readout), features, self.labelling)
        assert coordinates is not None
        return head.logits(self.logits(adapted), coordinates, self.labelling)

    def predict(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        coverage: float | None = None,
        none_of_these: float | None = None,
    ) -> Any:
        """Classify images.

        Args:
            images: PIL images, paths, bytes, file objects, arrays (H, W, C) or tensors (C, H, W),
                whole numbers from 0 or floats from 0 to 1; one, a list, or an array of many. Or a
                folder, a pattern such as "photos/*.jpg" or a `datasets.Dataset`: all of its images.
            batch_size: images per forward pass.
            coverage: how often `Prediction.plausible`, a set of classes, should hold the right
                one, such as 0.9; None for no sets.
            none_of_these: the share of images of the classes that may be called none of them, such
                as 0.05, so that others are (`Prediction.none_of_these`); None for no such answer.

        Returns:
            A `Prediction` for one image, a list of them for many.

        Raises:
            ResiDualError: no images, or one that cannot be read (names it); as `sets` and
                `check_none_of_these`.
        """
        if coverage is not None:
            self.sets(coverage)  # says before any work what is amiss
        if none_of_these is not None:
            self.check_none_of_these(none_of_these)
        items, single = images_of(images)
        logits, alike = self._answers_of(items, batch_size)
        files = [os.fspath(i) if isinstance(i, str | os.PathLike) else None for i in items]
        plausible = None if coverage is None else self.sets(coverage).sets(logits)
        predictions = predictions_of(
            logits,
            self.class_names,
            self.multi_label,
            files,
            plausible,
            alike=alike,
            none_of_these=none_of_these,
            thresholds=self.thresholds,
        )
        return predictions[0] if single else predictions

    def sets(self, coverage: float) -> PredictionSets:
        """What gives sets of classes that hold the right one as often as asked.

        By the jackknife of the class head's left-out predictions: near the coverage from 16 images
        per class on, above it with fewer; nothing is certain of one class or one image.

        Args:
            coverage: between 0 and 1.

        Raises:
            ResiDualError: no class head, one that knows of no left-out images, or classes that it
                was not fitted on.
        """
        head = self.head
        if head is None:
            raise ResiDualError(
                "sets of classes are made of what a class head says of images it did not see, and "
                "this classifier has none: fit one (method='ridge'), or leave the coverage out."
            )
        if head.class_count != len(self.class_names):
            raise ResiDualError(
                f"the class head knows {head.class_count} of {len(self.class_names)} classes, and "
                "nothing says how sure one may be of the others: leave the coverage out."
            )
        return head.sets(coverage)

    def check_none_of_these(self, share: float) -> None:
        """Raise a ResiDualError unless so few false alarms can be told.

        Args:
            share: of images of the classes that may be called none of them.

        Raises:
            ResiDualError: no class head, one of other classes or without distances of left-out
                images, or too few of those for the share.
        """
        head = self.head
        if head is None or head.known is None:
            raise ResiDualError(
                "'none of these' is told by how far a class head's training images lie from their "
                "classes, and this classifier knows of none: fit a head on one label per image "
                "(method='ridge'), with 20 images or more."
            )
        if head.class_count != len(self.class_names):
            raise ResiDualError(
                f"the class head knows {head.class_count} of {len(self.class_names)} classes: "
                "images of the others would be called none of these. Leave none_of_these out."
            )
        head.known.check_share(share)
