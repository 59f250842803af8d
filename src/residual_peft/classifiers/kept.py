"""What is kept of images beside a class head: sums, rows and held-out scores, and whose they are.

Sums let a head be changed; rows let jackknife+ leave each image out. Either lies in `run/` on disk,
which is never pushed: no pixels, but data as the images are.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from ..bases.fingerprint import Fingerprint
from ..errors import ResiDualError
from ..hub.files import Within, parse_json, quoted, read_tensors, record_of, write_tensors
from ..tuner import basis_digest
from .adapters import Adapters
from .heads import RidgeSums
from .heads.head import spread
from .heads.jackknife_plus import RidgeWithout
from .trained_head import PREFIX, SCORES, Features, TrainedHead

if TYPE_CHECKING:
    from .headed import HeadedClassifier

_COLUMNS = "columns"
HOW = "fit with keep_statistics=True (on the command line: fit --method ridge --keep-statistics)"
HOW_ROWS = "fit a ridge with sets='jackknife+'"


@dataclass(frozen=True)
class _Said:
    """What the file says of itself."""

    features: Features
    width: Annotated[int, Within(1, 10**7)]
    basis: str | None
    head: str
    model: Fingerprint


@dataclass(frozen=True)
class KeptStatistics:
    """The sums that a classifier's ridge head can be changed by, and what they belong to.

    What they reveal: the mean of each class's images and the covariance of all of them in the
    basis; of a class with one image, that image's coordinates. No pixels, but data all the same:
    they lie in `run/`, which is never pushed. Size: K (K + 1) / 2 + (C + 6) K numbers of 8 bytes,
    K what the head reads (embedding of 512: 1 MB; 2,304 coordinates: 21 MB; 15,504: 1 GB), and
    C K (K + 1) / 2 more where they are kept of each class.

    Attributes:
        sums: of the images, and the fit's settings.
        columns: which of the head's features are summed (K',); the others weigh nothing.
        features: what the head reads.
        width: K of all its features.
        basis: the digest of the basis of its coordinates; None on the embedding.
        model: whose features they are.
    """

    sums: RidgeSums
    columns: Tensor
    features: Features
    width: int
    basis: str | None
    model: Fingerprint

    @classmethod
    def of(
        cls, classifier: "HeadedClassifier", sums: RidgeSums, columns: Tensor
    ) -> "KeptStatistics":
        """Those of a classifier's own head, whose basis is saved with it."""
        head = head_of(classifier)
        basis = classifier.basis_of_head()
        if head.features == "coordinates" and basis is None:
            raise ResiDualError(
                "wanted an adapter that is saved with its basis, which statistics belong to, got "
                "one with save_basis=False: leave that out."
            )
        model = Fingerprint.of(classifier.model)
        return cls(sums, columns, head.features, len(head.head.mean), basis, model)

    def check(self, classifier: "HeadedClassifier", where: str = "the statistics") -> None:
        """Raise a ResiDualError unless they are of this classifier's model, basis and head."""
        head = head_of(classifier)
        own = (head.features, len(head.head.mean), head.class_count)
        counted = (self.features, self.width, len(self.sums.settings.alpha))
        if own != counted:
            raise ResiDualError(
                f"{where} are of a class head on {counted[1]} numbers of the {counted[0]} for "
                f"{counted[2]} classes, and this one reads {own[1]} of the {own[0]} for {own[2]}: "
                f"they belong to another; {HOW}."
            )
        self.model.check(classifier.model, where)
        if self.features == "coordinates" and basis_digest(classifier.model) != self.basis:
            raise ResiDualError(
                f"{where} are of coordinates in another basis than the adapter has: sums of "
                f"other bases mean nothing to it; {HOW}."
            )

    def changed(self, head: TrainedHead) -> TrainedHead:
        """The head of the sums as they are now; a and τ stay."""
        own = self.sums.head(head.head.text_weight, head.head.temperature)
        whole = spread(own, self.columns, self.width).to(torch.float32)
        return replace(head, head=whole, saved=None)

    def save(self, path: Path, head: str) -> None:
        """Write them, bound to the head of a `head_digest`."""
        said = _Said(self.features, self.width, self.basis, head, self.model)
        path.parent.mkdir(exist_ok=True)
        tensors = self.sums.state() | {_COLUMNS: self.columns}
        write_tensors(path, tensors, {"statistics": json.dumps(asdict(said))})

    @classmethod
    def load(cls, path: Path, head: str | None = None) -> "KeptStatistics":
        """Read what `save` wrote, for the head of a digest; None where anyone's will do."""
        tensors, metadata = read_tensors(path)
        where = quoted(path)
        if "statistics" not in metadata or _COLUMNS not in tensors:
            raise ResiDualError(f"{where} holds no statistics of a class head.")
        said = record_of(parse_json(metadata["statistics"].encode(), where), _Said, where)
        if head is not None and said.head != head:
            raise ResiDualError(
                f"{where} belongs to another class head than lies beside it: {HOW}."
            )
        columns = tensors.pop(_COLUMNS)
        try:
            sums = RidgeSums.from_state(tensors)
        except ResiDualError as error:
            raise ResiDualError(f"{where}: {error}") from error
        whole = columns.shape == (sums.statistics.columns,) and not columns.is_floating_point()
        ends = (-1, *columns.flatten().tolist(), said.width)
        if not whole or any(one >= other for one, other in pairwise(ends)):
            raise ResiDualError(f"{where} does not say which features its sums are of.")
        return cls(sums, columns.long(), said.features, said.width, said.basis, said.model)


def head_digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of a class head as it is saved (`TrainedHead.tensors`), without its scores."""
    digest = hashlib.sha256()
    for name in sorted(set(tensors) - {PREFIX + SCORES}):
        whole = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def head_of(classifier: "HeadedClassifier") -> TrainedHead:
    """A classifier's class head; refused where it has none."""
    if classifier.head is None:
        raise ResiDualError(
            "this classifier has no class head, whose images could be added to or taken from: "
            f"{HOW}."
        )
    return classifier.head


def checked_statistics(classifier: "HeadedClassifier") -> KeptStatistics:
    """A classifier's statistics; refused where there are none, or those of another head."""
    head, kept = head_of(classifier), classifier.statistics
    if kept is None:
        raise ResiDualError(
            f"the class head ({head.method or 'of an unknown fit'}) has no statistics of its "
            f"images, without which it can only be fitted anew: {HOW}."
        )
    kept.check(classifier)
    return kept


def save_rows(without: RidgeWithout, path: Path, head: str) -> None:
    """Write N × (K + 4 C) numbers of 4 bytes, bound to a head by its `head_digest`."""
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, without.state(), {"head": head})


def load_rows(path: Path, head: str, columns: int, classes: int) -> RidgeWithout:
    """Read what `save_rows` wrote, for the head of a digest on K columns for C classes."""
    tensors, metadata = read_tensors(path)
    where = quoted(path)
    if metadata.get("head") != head:
        raise ResiDualError(
            f"{where} belongs to another class head than lies beside it: {HOW_ROWS}."
        )
    try:
        found = RidgeWithout.from_state(tensors)
    except ResiDualError as error:
        raise ResiDualError(f"{where}: {error}") from error
    if int(found.columns.max()) >= columns or found.targets.shape[1] != classes:
        raise ResiDualError(f"{where} is of other features or classes than the head's: {HOW_ROWS}.")
    return found


def answers_digest(classifier: "HeadedClassifier") -> str:
    """The sha256 of what a classifier's answers hang on: classes, head, active adapters and bases.

    The base model's own weights are taken for granted: nothing here changes them.
    """
    scale = torch.tensor([classifier.logit_scale, classifier.logit_bias])
    state = {"class_embeddings": classifier.class_embeddings, "scale": scale}
    if classifier.head is not None:
        state |= classifier.head.tensors()
    active = set(Adapters.of(classifier.model).active)
    model = classifier.model
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if active.intersection(name.split(".")):
            state[name] = tensor
    return head_digest(state)
