"""A small classes.csv beside the data: what its classes are called, in words and in other ways."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from ..errors import ResiDualError, printable, some
from ..hub.files import quoted
from .class_names import composed, spoken
from .labels import label_item
from .labels.columns import in_texts
from .tables import Columns, read_table

logger = logging.getLogger(__name__)

CLASSES = "classes.csv"
_NAMES = ("name", "class", "label", "folder", "id")
_WORDS = ("words", "prompt", "text", "description")
_OTHERS = ("spellings", "other_spellings", "synonyms", "aliases", "also")
_BETWEEN = "|;"


@dataclass(frozen=True)
class ClassList:
    """What classes are called."""

    # a name as the data have it, or another spelling of it, in small letters -> the name that the
    # class has from here on, which goes into prompts
    words: Mapping[str, str]
    file: str  # where it was read

    @classmethod
    def read(cls, path: Path) -> "ClassList | None":
        """Read columns `name`, and `words` and `spellings` (several between | or ;) or one of them.

        None where there are none: then it is somebody else's.

        Raises:
            ResiDualError: no table, or a name or spelling of two classes.
        """
        columns = read_table(path)
        assert not isinstance(columns, Dataset)  # which a CSV file never is
        names, words, others = (_column(columns, known) for known in (_NAMES, _WORDS, _OTHERS))
        if names is None or (words is None and others is None):
            logger.warning(
                "%s is not used: wanted columns name and words (or spellings), got %s",
                quoted(path),
                printable(", ".join(columns)),
            )
            return None
        found: dict[str, str] = {}
        empty = [None] * len(names)
        rows = zip(names, words or empty, others or empty, strict=True)
        for row, (own, text, spellings) in enumerate(rows):
            if own is None:
                raise ResiDualError(f"row {row} of {quoted(path)} has no name.")
            said, spellings = text or own, spellings or ""
            parts = spellings.split(max(_BETWEEN, key=spellings.count))
            for spelling in (own, *filter(None, map(str.strip, parts))):
                if found.setdefault(_folded(spelling), said) != said:
                    raise ResiDualError(
                        f"{quoted(path)} has '{spelling}' for two classes, "
                        f"'{found[_folded(spelling)]}' and '{said}'."
                    )
        return cls(found, str(path))

    def named(self, label: str) -> str:
        """What a class of the data is called."""
        return self.words.get(_folded(label), label)

    def applied(self, parts: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """The data with these names for their labels; classes of one name become one.

        Labels that are numbers without names stay as they are.

        Raises:
            ResiDualError: a number that is no class, such as -1 of what is unlabelled.
        """
        seen: set[str] = set()
        renamed = {part: self._renamed(dataset, part, seen) for part, dataset in parts.items()}
        known = {_folded(label) for label in seen}
        used = {said for key, said in self.words.items() if key in known}
        if missing := sorted(set(self.words.values()) - used):
            names = some([f"'{name}'" for name in missing])
            logger.warning("%s: no image is of %s", printable(self.file), printable(names))
        return renamed

    def _renamed(self, dataset: Dataset, part: str, used: set[str]) -> Dataset:
        item = label_item(dataset.features["label"])
        if not isinstance(item, ClassLabel) and not str(getattr(item, "dtype", "")).endswith(
            "string"
        ):
            return dataset  # bare numbers, whose meaning is asked for later

        def name_of(label: str) -> str:
            used.add(label)
            return self.named(label)

        return in_texts(dataset, part, "the data", name_of)


def class_list_in(folder: Path) -> ClassList | None:
    """That of a folder, if there is one."""
    path = folder / CLASSES
    return ClassList.read(path) if path.is_file() else None


def _column(columns: Columns, names: Iterable[str]) -> list[Any] | None:
    known = {_folded(column).replace(" ", "_"): values for column, values in columns.items()}
    return next((known[name] for name in names if name in known), None)


def _folded(text: str) -> str:
    return spoken(composed(str(text))).casefold()
