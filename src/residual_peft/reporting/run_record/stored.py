"""What `run.json` holds, field by field."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ...analysis.describing import Words
from ...classifiers.trained_head import Features
from ...hub.facts import Facts
from ...hub.files import Count
from ...towers.units import Unit
from .parts import ClassReasons, NamedImage, TrustRecord

FORMAT_VERSION = 1
T = TypeVar("T")


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
