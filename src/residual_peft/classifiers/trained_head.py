"""A class head as a classifier carries it: what it reads, and how it stands beside the texts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..data.labels import ONE_LABEL, Labelling, labelling_in
from ..errors import ResiDualError
from ..hub.files import Within
from .heads import ClassHead, LeftOut, LowRankHead, head_from_state, within
from .heads.compress import bytes_of
from .heads.conformal import checked_scores
from .none_of_these import KnownImages, known_images_from

Features = Literal["coordinates", "embedding"]
PREFIX = "head."
SCORES = "left_out_scores"
THRESHOLDS = "thresholds"
HEAD_BYTES = 20_000_000
"""That a class head may take on disk; a larger one is saved in fewer bits, or of low rank."""
PRECISIONS = {
    torch.float32: "single precision",
    torch.float16: "half precision",
    torch.int8: "8 bits",
}
LARGEST = 2**30
"""Numbers that a head of low rank may be unfolded to, 4 GB: 69,000 classes of a B/16."""
FEATURE, LOGIT = 1e6, 1e30
"""A saved head's logits for features, and zero-shot logits, up to the one stay below the other."""


@dataclass(frozen=True)
class HeadRecord:
    """What residual_classifier.json says of a class head.

    Attributes:
        features: what it reads.
        classes: C_h, the first of the classifier's classes.
        columns: K of its features.
        basis: the digest of the basis that its coordinates are taken in; None where the basis is
            not saved with the adapter, or the features are no coordinates.
        method: how it was fitted, in words.
    """

    features: Features
    classes: Annotated[int, Within(1, 10**6)]
    columns: Annotated[int, Within(1, 10**7)]
    basis: str | None = None
    method: str | None = None


@dataclass(frozen=True)
class TrainedHead:
    """A class head and what it reads of an image.

    It decides between the classes that it was fitted on, the first C_h of its classifier's. Where
    there are more, the texts (with the gains) say how likely it is that the image is of the former
    at all, and the head shares that out: p(k) = p_text(trained) · p_head(k) for a class that it was
    fitted on, p(k) = p_text(k) for another. With several labels per image each is on its own.

    Attributes:
        head: the linear map.
        features: "coordinates" of the active adapter, (B, K), as `coordinates_of` gives them; or
            the unadapted "embedding" (B, d), normalized.
        method: how it was fitted, in words.
        left_out_scores: −log p of the right class of training images by fits without them, sorted
            (n,): what sets of classes by the jackknife are made of. None where nothing could be
            left out, images have several labels, or the head is of low rank since (`within`).
        known: what tells images that are none of its classes; None where the fit's were too few, or
            images have several labels.
        thresholds: with several labels per image, the logit from which on an image has the class
            (C_h,), for the best F1 on left-out images; None for 0, a probability of one half.
        saved: what is saved of the head, where that is less than all of it (`within`); the head is
            then what those tensors give.
    """

    head: ClassHead
    features: Features = "coordinates"
    method: str | None = None
    left_out_scores: Tensor | None = None
    known: KnownImages | None = None
    thresholds: Tensor | None = None
    saved: Mapping[str, Tensor] | None = None

    @property
    def class_count(self) -> int:
        """C_h."""
        return self.head.class_count

    def logits(
        self, zero_shot: Tensor, features: Tensor, labelling: Labelling = ONE_LABEL
    ) -> Tensor:
        """Logits (B, C) of all of a classifier's classes.

        Args:
            zero_shot: those of the texts, (B, C).
            features: what the head reads, (B, K) or (B, d).
            labelling: one label per image, or several.

        Raises:
            ResiDualError: features of another basis or model.
        """
        count = self.class_count
        own = self.head.logits(features, zero_shot[:, :count]).to(zero_shot.dtype)
        return labelling.beside(own, zero_shot)

    def to(self, device: torch.device | str) -> "TrainedHead":
        """The same on another device."""
        own = None if self.thresholds is None else self.thresholds.to(device)
        return replace(self, head=self.head.to(device), thresholds=own)

    @property
    def bytes(self) -> int:
        """What its tensors take on disk, scores aside."""
        return bytes_of(self.head.state() if self.saved is None else self.saved)

    def within(self, budget: int, features: Tensor | None = None) -> "TrainedHead":
        """The same in at most so many bytes: V in fewer bits, or of low rank (`heads.within`).

        It is then in memory what it is on disk, so that it can be measured before it is saved. Of
        low rank it answers otherwise than what left images out (sets by them, asked to hold the
        right class .9 of the time, were seen to hold it .53): scores and thresholds of those go.

        Args:
            budget: bytes of its tensors.
            features: of images of all its classes (n, K), for the low rank that suits them best.

        Raises:
            ResiDualError: not even rank 1 fits.
        """
        if self.bytes <= budget:
            return self
        state = within(self.head, features, budget)
        small = replace(self, head=_head_of(state).to(self.head.mean.device), saved=state)
        return replace(small, left_out_scores=None, thresholds=None) if small.low_rank else small

    @property
    def low_rank(self) -> bool:
        """Whether its V is saved as two factors: another head than the one that was fitted."""
        return self.saved is not None and "right" in self.saved

    @property
    def described(self) -> str:
        """How its V is saved, in words."""
        state = self.head.state() if self.saved is None else self.saved
        numbers = PRECISIONS[state["weights"].dtype]
        if "right" not in state:
            return numbers
        return f"{numbers}, rank {len(state['right'])} for {self.class_count} classes"

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of it beside the class embeddings."""
        state = self.head.state() if self.saved is None else self.saved
        found = {PREFIX + name: tensor for name, tensor in state.items()}
        if self.left_out_scores is not None:
            found[PREFIX + SCORES] = self.left_out_scores.float()
        if self.thresholds is not None:
            found[PREFIX + THRESHOLDS] = self.thresholds.float().cpu()
        return found if self.known is None else found | self.known.tensors()

    def record(self, basis: str | None) -> HeadRecord:
        """What is said of it.

        Args:
            basis: the digest of the basis of its coordinates; None on the embedding.
        """
        columns = len(self.head.mean)
        return HeadRecord(self.features, self.class_count, columns, basis, self.method)


def head_from(
    record: HeadRecord, tensors: Mapping[str, Tensor], width: int, where: str
) -> TrainedHead:
    """The head that was saved.

    Args:
        record: what residual_classifier.json says of it.
        tensors: of residual_classifier.safetensors.
        width: d of the class embeddings.
        where: the tensors' file, for messages.

    Raises:
        ResiDualError: the two do not belong together.
    """
    state = {
        name.removeprefix(PREFIX): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    scores = checked_scores(state.pop(SCORES, None), where)
    own = state.pop(THRESHOLDS, None)
    if own is not None and (own.shape != (record.classes,) or not own.isfinite().all()):
        raise ResiDualError(
            f"{where} holds other thresholds than a finite number for each of {record.classes} "
            "classes."
        )
    if "weights" in state and state["weights"].dtype not in PRECISIONS:
        raise ResiDualError(
            f"{where} holds a class head's weights as {state['weights'].dtype}, wanted "
            f"{', '.join(map(str, PRECISIONS))}."
        )
    try:
        head = _head_of(state)
        _check_size(head)
    except ResiDualError as error:
        raise ResiDualError(f"{where}: {error}") from error
    if (len(head.mean), head.class_count) != (record.columns, record.classes):
        raise ResiDualError(
            f"{where} holds a class head of {len(head.mean)} features and {head.class_count} "
            f"classes, and the record beside it says {record.columns} and {record.classes}: the "
            "files do not belong together. Save or download the classifier again."
        )
    small = "right" in state or state["weights"].dtype != torch.float32
    columns = record.columns if record.features == "coordinates" else None
    known = known_images_from(tensors, width, columns, head.class_count, where)
    saved = state if small else None
    own = None if own is None else own.float()
    return TrainedHead(head, record.features, record.method, scores, known, own, saved)


def _check_size(head: ClassHead) -> None:
    """Finite numbers may still give logits that float32 cannot hold, and NaN after those."""
    largest = (FEATURE + head.mean.double().abs()) / head.scale.double()
    scores = largest @ head.weights.double().abs() + head.offset.double().abs()
    bound = abs(head.temperature) * float(scores.max()) + abs(head.text_weight) * FEATURE
    if not bound < LOGIT:
        raise ResiDualError(
            f"wanted a class head whose logits stay below {LOGIT:.0e}, got numbers that give "
            f"{bound:.0e}."
        )


def _head_of(state: Mapping[str, Tensor]) -> ClassHead:
    """The plain head of a state, of low rank or not."""
    found = head_from_state(state)
    if not isinstance(found, LowRankHead):
        return found
    size = len(found.head.mean) * len(found.offset)
    if size > LARGEST:  # a few numbers of a file ask for so many
        raise ResiDualError(
            f"wanted a class head of at most {LARGEST:,} numbers, got one of {size:,} in the form "
            "of two factors."
        )
    return found.expanded()


def thresholds_of(left_out: LeftOut) -> Tensor | None:
    """`TrainedHead.thresholds` by left-out images; None with one label per image."""
    known = left_out.known
    if left_out.how == "none" or not known.any():
        return None
    labelling = labelling_in(left_out.labels)
    found = labelling.thresholds(left_out.logits[known], left_out.labels[known])
    return None if found is None else found.float()


def embedding_features(readout: Tensor) -> Tensor:
    """What a head on the embedding reads: y / ‖y‖, (B, d), as the cosines do."""
    return functional.normalize(
        readout.to(torch.promote_types(readout.dtype, torch.float32)), dim=-1
    )
