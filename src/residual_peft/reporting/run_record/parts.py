"""What a `RunRecord` consists of, and what `run.json` holds of it, field by field."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from ...analysis import Reason
from ...analysis.describing import Words
from ...classifiers.heads.conformal import By
from ...classifiers.trained_head import Features
from ...errors import ResiDualError
from ...hub.facts import Facts
from ...hub.files import Count
from ...towers.units import Unit

FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class GainRecord:
    """K gains of U units, unit after unit, and what they did to the test images."""

    units: tuple[Unit, ...]  # the adapted units
    counts: tuple[int, ...]  # gains of each, K in all; 1 each where a unit has a single gain
    gains: Tensor  # λ (K,)
    share: Tensor  # (K,), of the squared change of the logits, as `explain_adapter` divides it
    toward_label: Tensor  # (K,), mean change of the label's logit
    rescaling_share: float = 0.0  # the same for the change of the embeddings' length
    # the same for what the adapter's settings drop; all shares add up to 1
    settings_share: float = 0.0
    # variance along each component in the basis (K,); None without components
    eigenvalues: Tensor | None = None

    def __post_init__(self) -> None:
        total = sum(self.counts)
        wrong = [name for name, tensor in self.tensors().items() if tensor.shape != (total,)]
        if len(self.units) != len(self.counts) or wrong:
            raise ResiDualError(
                f"wanted {total} numbers for the gains of {len(self.units)} units, got "
                f"{len(self.counts)} counts and another size of {', '.join(wrong) or 'none'}."
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that is (K,), by name."""
        names = ("gains", "share", "toward_label", "eigenvalues")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True)
class ClassReasons:
    """What speaks for a class in its own test images, and what against it, the strongest first."""

    class_index: Count
    pro: tuple[Reason, ...]
    con: tuple[Reason, ...]


@dataclass(frozen=True)
class HeadShares:
    """What a class head makes of U units of K components, as `explain_head` divides it."""

    features: Features  # of an "embedding" there are no units: it is read whole
    units: tuple[Unit, ...]  # the adapted units
    # components of each, K in all; 1 each where the adapter keeps no components
    counts: tuple[int, ...]
    share: Tensor  # (K,), of how the logits vary over the test images
    toward_label: Tensor  # (K,), mean of what each adds to the label's logit
    text_share: float = 0.0  # of the texts; all shares add up to 1
    whole: bool = False  # whether a column is a unit, not a component
    reasons: tuple[ClassReasons, ...] = ()  # of the classes that have test images

    def __post_init__(self) -> None:
        total = sum(self.counts)
        shapes = [tuple(tensor.shape) for tensor in (self.share, self.toward_label)]
        if len(self.units) != len(self.counts) or shapes != [(total,)] * 2:
            raise ResiDualError(
                f"wanted {total} shares of the {len(self.units)} units that a class head reads, "
                f"got {len(self.counts)} counts and tensors of {shapes[0]} and {shapes[1]}."
            )


@dataclass(frozen=True)
class TrustRecord:
    """What predictions of left-out training images say of how far to trust a fit."""

    images: int  # how many were left out
    accuracy: float  # share of them that is told right
    calibration_before: float  # expected calibration error on them of the model as it came
    calibration_after: float  # of the fit
    wrong_labels: int | None = None  # how many labels look wrong; None where that cannot be told
    # of the sets of classes that were tried on the test images; None without sets
    coverage: float | None = None
    covered: float | None = None  # the share of test images whose class is in their set
    set_size: float | None = None  # the mean number of classes in a set
    more_images: int | None = None  # so many more training images
    # ... would add about so much to the accuracy, a share of 1; None where that cannot be told
    more_points: float | None = None
    sets_by: By = "jackknife"  # what sets come from
    sets_from: int = 0  # of so many images; 0 in records of before that was told
    sets_grouped: bool = False  # whether held-out images came in groups: nothing holds of new ones

    def __post_init__(self) -> None:
        sets = {x is None for x in (self.coverage, self.covered, self.set_size)}
        more = {x is None for x in (self.more_images, self.more_points)}
        if len(sets) > 1 or len(more) > 1:
            raise ResiDualError(
                "wanted what left-out images say of sets of classes, and of more images, whole or "
                "not at all, got parts of it."
            )


@dataclass(frozen=True)
class Example:
    """A test image that changed side, small."""

    row: int  # which of the N test images
    image: bytes  # JPEG or PNG bytes of at most 160 pixels each way


@dataclass(frozen=True)
class NamedImage:
    """An image that is shown because of its label: a mistake, or a label that looks wrong."""

    file: str  # what it is called
    label: int  # number of the class that it is filed under
    other: int  # of the class that it is taken for
    score: float  # the probability of `other`, or that the label is wrong
    image: bytes  # as in `Example`


def stored_part(value: Any, cls: Callable[..., T]) -> T | None:
    """Those fields of a dataclass that another one has, too; None of None."""
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return None if value is None else cls(**{name: getattr(value, name) for name in names})


@dataclass(frozen=True)
class StoredGains:
    """A `GainRecord` without its tensors."""

    units: tuple[Unit, ...]
    counts: tuple[Count, ...]
    rescaling_share: float
    settings_share: float


@dataclass(frozen=True)
class StoredExample:
    """An example and the name of its picture."""

    row: Count
    file: str


@dataclass(frozen=True)
class StoredHead:
    """`HeadShares` without its tensors."""

    features: Features
    units: tuple[Unit, ...]
    counts: tuple[Count, ...]
    text_share: float
    whole: bool
    reasons: tuple[ClassReasons, ...]


@dataclass(frozen=True)
class StoredImage:
    """A `NamedImage` and the name of its picture."""

    name: str
    label: Count
    other: Count
    score: float
    file: str

    @classmethod
    def of(cls, image: NamedImage, file: str) -> "StoredImage":
        """To be written; `file` is the picture's."""
        return cls(image.file, image.label, image.other, image.score, file)

    def restored(self, image: bytes) -> NamedImage:
        """As it was."""
        return NamedImage(self.name, self.label, self.other, self.score, image)


@dataclass(frozen=True)
class StoredRun:
    """A `RunRecord` without its tensors and pictures; `stamp` is theirs, too."""

    stamp: str
    class_names: tuple[str, ...]
    facts: Facts
    gains: StoredGains | None
    words: tuple[Words, ...]
    examples: tuple[StoredExample, ...]
    format_version: int = FORMAT_VERSION
    head: StoredHead | None = None
    trust: TrustRecord | None = None
    mistakes: tuple[StoredImage, ...] = ()
    suspicious: tuple[StoredImage, ...] = ()
