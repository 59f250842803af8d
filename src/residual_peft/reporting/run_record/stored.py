"""What `run.json` holds, field by field."""

from dataclasses import dataclass
from typing import Annotated

from ...hub.facts import Facts
from ...hub.files import Within

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
class StoredRun:
    """A `RunRecord` without its tensors and pictures; `stamp` is theirs, too."""

    stamp: str
    class_names: tuple[str, ...]
    facts: Facts
    gains: StoredGains | None
    words: tuple[StoredWords, ...]
    examples: tuple[StoredExample, ...]
    format_version: int = FORMAT_VERSION
