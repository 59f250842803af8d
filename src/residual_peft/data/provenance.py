"""Which images a classifier was fitted on, and how they were shared out: saved with it."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from ..hub.files import Within, path_of, record_of
from .stored import Unusable, content_of

Seed = Annotated[int, Within(0, 2**32 - 1)]
"""What numpy, scikit-learn and the Trainer all take."""


@dataclass(frozen=True)
class SplitRecord:
    """How the images of a fit were shared out: whoever evaluates uses the same test images.

    Attributes:
        digest: of the data as a whole (`digest_of`): equal where the images, their classes and the
            splits that they came in are equal, whatever the files are called.
        seed: of the splits that were cut.
        shares: part -> its share of the images, for the parts that were cut from the training
            images ("validation", "test"); a part that the data came with is not among them.
        images: split -> how many images it has.
        few: images of each class that were drawn to train on; 0 where no such draw was made.
        group_column: of the data, whose equal values stayed together; None where there was none.
        tested: one digest of all test images; "" in records of before it was kept.
        updated: whether the classifier learned from more images since, of which the test images may
            be some.
    """

    digest: str
    seed: Seed = 0
    shares: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    few: Annotated[int, Within(0)] = 0
    group_column: str | None = None
    tested: str = ""
    updated: bool = False


def drawn(seed: Any, few: Any) -> tuple[int, int]:
    """A seed and how many of each class, as a record has them: checked, and numpy's as Python's.

    Raises:
        ResiDualError: another type, or out of bounds.
    """
    given = {"seed": seed, "few": few or 0}
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in given.items()}
    advice = "Leave it out for the default."
    found = record_of({"digest": "", **plain}, SplitRecord, "the split", advice=advice)
    return found.seed, found.few


def image_digest(content: bytes) -> str:
    """The name of an image by its content: the first 32 hex digits of the SHA-256 of its file."""
    return hashlib.sha256(content).hexdigest()[:32]


def file_digests(items: Iterable[Any]) -> list[str]:
    """The digests of the images among some that are files or bytes, or as `datasets` stores these.

    Files that cannot be read have none: whoever reads the images says why.
    """
    found = []
    for item in items:
        stored = item if isinstance(item, Mapping) else {"path": item}
        content, path = stored.get("bytes"), stored.get("path")
        if content is None and isinstance(path, str | os.PathLike):
            with suppress(Unusable):
                content = content_of(path_of(path))
        if content is not None:
            found.append(image_digest(content))
    return found


def digest_of_part(digests: Iterable[str]) -> str:
    """One digest for images by their own, whatever their order; "" for none."""
    lines = sorted(digests)
    return image_digest("\n".join(lines).encode()) if lines else ""


def digest_of(rows: Iterable[tuple[str, str, str]]) -> str:
    """One digest for a data set, whatever the order of its images.

    A row is the split that the image came in, its class or classes, and its `image_digest`.
    """
    return image_digest("\n".join(sorted("\t".join(row) for row in rows)).encode())
