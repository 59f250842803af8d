"""What `run.json` holds, field by field."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from ...analysis import Reason
from ...hub.facts import Facts
from ...hub.files import Within
from ...towers.units import Unit
from .parts import ClassReasons, HeadShares, NamedImage, TrustRecord

FORMAT_VERSION = 1
Count = Annotated[int, Within(0, 2**31)]


@dataclass(frozen=True)
class StoredGains:
    """A `GainRecord` without its tensors; units by name."""

    units: tuple[str, ...]
    counts: tuple[Count, ...]
    rescaling_share: float
    settings_share: float


@dataclass(frozen=True)
class StoredWords:
    """`Words` with its unit by name."""

    unit: str
    component: Count | None
    texts: tuple[tuple[str, float], ...]
    explained: float | None


@dataclass(frozen=True)
class StoredExample:
    """An example and the name of its picture."""

    row: Count
    file: str


@dataclass(frozen=True)
class StoredReason:
    """A `Reason` with its unit by name."""

    unit: str
    component: Count | None
    effect: float
    side: Annotated[int, Within(-1, 1)]

    @classmethod
    def of(cls, reason: Reason) -> "StoredReason":
        """To be written."""
        return cls(str(reason.unit), reason.component, reason.effect, reason.side)

    def restored(self) -> Reason:
        """As it was."""
        return Reason(Unit.parse(self.unit), self.component, self.effect, self.side)


@dataclass(frozen=True)
class StoredReasons:
    """`ClassReasons`."""

    class_index: Count
    pro: tuple[StoredReason, ...]
    con: tuple[StoredReason, ...]

    @classmethod
    def of(cls, reasons: ClassReasons) -> "StoredReasons":
        """To be written."""
        sides = [tuple(map(StoredReason.of, side)) for side in (reasons.pro, reasons.con)]
        return cls(reasons.class_index, *sides)

    def restored(self) -> ClassReasons:
        """As they were."""
        pro, con = (tuple(reason.restored() for reason in side) for side in (self.pro, self.con))
        return ClassReasons(self.class_index, pro, con)


@dataclass(frozen=True)
class StoredHead:
    """`HeadShares` without its tensors."""

    features: Literal["coordinates", "embedding"]
    units: tuple[str, ...]
    counts: tuple[Count, ...]
    text_share: float
    whole: bool
    reasons: tuple[StoredReasons, ...]

    @classmethod
    def of(cls, head: HeadShares) -> "StoredHead":
        """To be written."""
        reasons = tuple(map(StoredReasons.of, head.reasons))
        units = tuple(map(str, head.units))
        features: Literal["coordinates", "embedding"] = (
            "embedding" if head.features == "embedding" else "coordinates"
        )
        return cls(features, units, head.counts, head.text_share, head.whole, reasons)

    def restored(self, share: Tensor, toward_label: Tensor) -> HeadShares:
        """As it was."""
        return HeadShares(
            self.features,
            tuple(map(Unit.parse, self.units)),
            self.counts,
            share,
            toward_label,
            self.text_share,
            self.whole,
            tuple(reasons.restored() for reasons in self.reasons),
        )


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
    words: tuple[StoredWords, ...]
    examples: tuple[StoredExample, ...]
    format_version: int = FORMAT_VERSION
    head: StoredHead | None = None
    trust: TrustRecord | None = None
    mistakes: tuple[StoredImage, ...] = ()
    suspicious: tuple[StoredImage, ...] = ()
