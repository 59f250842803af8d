"""A class head beside the class embeddings: what it reads of images, and its logits."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..bases.reading import ReadBatch, reading
from ..errors import ResiDualError
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
from .heads.jackknife_plus import RidgeWithout
from .kept import KeptStatistics
from .none_of_these import known_images_from
from .trained_head import TrainedHead, embedding_features


class HeadedClassifier(CosineClassifier):
    """A classifier that may have a class head; see `ZeroShotClassifier`."""

    _head: TrainedHead | None = None
    _statistics: KeptStatistics | Callable[[], KeptStatistics] | None = None
    _without: RidgeWithout | Callable[[], RidgeWithout] | None = None

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
            if not isinstance(head, TrainedHead):
                raise ResiDualError(f"wanted a TrainedHead, got {type(head).__name__}.")
            if head.class_count > (count := len(self.class_names)):
                raise ResiDualError(
                    f"the class head is of {head.class_count} classes, the classifier of {count}: "
                    "the head's classes are the classifier's first ones."
                )
            columns = self.class_embeddings.shape[1]
            if head.features == "coordinates":
                columns = len(readout_state(self.model, adapter_name).directions)
            if len(head.head.mean) != columns:
                raise ResiDualError(
                    f"the class head reads {len(head.head.mean)} {head.features}, the model gives "
                    f"{columns}: it is of another basis, other units or another model."
                )
            if head.known is not None:  # by hand it may be what no file may hold
                own = columns if head.features == "coordinates" else None
                width, count = self.class_embeddings.shape[1], head.class_count
                known_images_from(head.known.tensors(), width, own, count, "the class head")
            head = head.to(self.device)
        self._head, self._statistics, self._without = head, statistics, None

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

    @property
    def without(self) -> RidgeWithout | None:
        """The class head's ridge without each part of its images, if they were kept: jackknife+.

        Read from disk, or worked out, when it is first asked for; another head has none.
        """
        if callable(self._without):
            self._without = self._without()
        return self._without

    @without.setter
    def without(self, without: RidgeWithout | None) -> None:
        self._without = without

    def basis_of_head(self) -> str | None:
        """The digest of the basis that the head's coordinates are in."""
        if self.head is None or self.head.features == "embedding":
            return None
        return basis_digest(self.model)

    def classified(
        self, batches: Iterable[Any], **options: Any
    ) -> Iterator[tuple[ReadBatch, Tensor]]:
        """Batches of images, what was seen of each, and its logits (B, C) with adapter and head.

        Args:
            batches: as for `reading`.
            options: of `reading`: `labelled`, `progress`, `description`.
        """
        for seen in self.seen(batches, **options):
            yield seen, self.answer_to(seen.readout, seen.capture)

    def seen(self, batches: Iterable[Any], **options: Any) -> Iterator[ReadBatch]:
        """What `classified` makes logits of: with a capture where the head reads coordinates."""
        head = self.head
        if head is not None and head.features == "coordinates":
            options |= {"taps": True, "check": "first"}
            return reading(self.model, adapted_tower(self.model), batches, **options)
        return reading(self.model, None, batches, adapters=head is None, **options)

    def coordinates(self, seen: ReadBatch) -> Tensor:
        """Those of a batch with a capture, in the active adapter's basis (B, K)."""
        assert seen.capture is not None
        return coordinates_of(readout_state(self.model), seen.capture)

    def answer_to(self, readout: Tensor, capture: Capture | None = None) -> Tensor:
        """Logits (B, C) from one run of the tower.

        Args:
            readout: (B, d), with adapters where there is neither a capture nor a class head.
            capture: what the taps saw of the unadapted model; None where no head reads coordinates.
        """
        return self.answer(*self.taken_apart(readout, capture))

    def taken_apart(
        self, readout: Tensor, capture: Capture | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`answer`'s arguments, of one run of the tower; those of `answer_to`."""
        if capture is None:
            return readout, readout, None
        state, gains = readout_state(self.model), gains_of(self.model).detach()
        found = coordinates_of(state, capture)
        return compose(state, base_of(state, readout), found, gains), readout, found

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
        return head.logits(*self.asked_of(adapted, readout, coordinates), self.labelling)

    def asked_of(
        self, adapted: Tensor, readout: Tensor, coordinates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What a class head is given by `answer`: zero-shot logits (B, C), what it reads (B, K)."""
        assert self.head is not None
        if self.head.features == "embedding":
            return self.logits(readout), embedding_features(readout)
        assert coordinates is not None
        return self.logits(adapted), coordinates
