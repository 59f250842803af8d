"""What labelled images are like before anything is made of them: counts, sizes, kinds, copies."""

import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import counted, some
from .checking import stored_images
from .image_data import ImageData
from .labels.columns import labels_in
from .skipped import SkippedImage

SHOWN = 5  # examples of anything
_NUMBER = re.compile(r"\d[\d,.]*")
_EXTREMES = ("smallest", "median", "largest")


@dataclass(frozen=True)
class Place:
    """Where an image stands in the data."""

    split: str  # train, validation or test
    row: int  # of the split; where `load_data` cut it, of its parts one after the other
    file: str  # its path (below the folder of the data, where it lies in one), or split and row
    classes: tuple[str, ...]  # the names of its classes


@dataclass(frozen=True)
class Copies:
    """Images that are one and the same, or nearly."""

    places: tuple[Place, ...]  # of two or more

    @property
    def across_splits(self) -> bool:
        """Whether a model would be tested on what it was trained on."""
        return len({place.split for place in self.places}) > 1

    @property
    def across_classes(self) -> bool:
        """Whether one of them must be of the wrong class."""
        return len({place.classes for place in self.places}) > 1

    def __str__(self) -> str:
        shown = [
            f"'{p.file}' ({p.split}, {' + '.join(p.classes) or 'no class'})" for p in self.places
        ]
        more = f" and {len(shown) - SHOWN} more" if shown[SHOWN:] else ""
        return ", ".join(shown[:SHOWN]) + more


@dataclass(frozen=True)
class Survey:
    """What images are like."""

    source: str  # what the data are called
    splits: dict[str, int]  # split -> how many images it came with
    classes: dict[str, int]  # class -> how many images have it, in the order of the classes
    multi_label: bool  # whether an image may have several classes, or none
    # (N, 2) width and height in pixels, as stored; fewer where files changed meanwhile
    sizes: npt.NDArray[np.int64]
    formats: dict[str, int]  # PIL's name of a kind of file -> how many, the most frequent first
    places: tuple[Place, ...]  # of all N images, in the order of the splits and their rows
    skipped: tuple[SkippedImage, ...]  # what cannot be read, and why
    copies: tuple[Copies, ...]  # groups of images whose files are the same byte for byte
    left_out: tuple[str, ...] = ()  # what lies beside the images and is not taken for any

    @property
    def images(self) -> int:
        """N."""
        return len(self.places)

    @property
    def largest_share(self) -> float:
        """The share of the images that have the most frequent class."""
        return max(self.classes.values()) / self.images

    def summary(self) -> list[str]:
        """The first lines for people: how much of what."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        (largest, most), *_, (smallest, fewest) = self._by_count
        return [
            f"{counted(self.images, 'image')} of {len(self.classes)} classes ({splits})",
            f"largest class '{largest}': {most:,} images ({self.largest_share:.1%}); smallest "
            f"'{smallest}': {fewest:,}",
            self._sizes(),
        ]

    def lines(self) -> list[str]:
        """All of it for people."""
        said = self.summary()
        reasons: dict[str, list[SkippedImage]] = {}
        for image in self.skipped:  # sizes and the like differ from file to file
            reasons.setdefault(_NUMBER.sub("", image.reason), []).append(image)
        for images in reasons.values():
            same = len({image.reason for image in images}) == 1
            why = f"{', ' if same else ', such as '}{images[0].reason}"
            files = [SkippedImage(below(image.file, self.source), "").title for image in images]
            said.append(f"skipped {counted(len(files), 'file')}{why}: {some(files, SHOWN)}")
        said += [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        if names := ", ".join(f"'{name}'" for name, count in self.classes.items() if not count):
            said.append(
                f"no image of {names} can be read: repair them or leave the class out before a fit"
            )
        said.append(self._classes())
        return said + copies_lines(self.copies, "copies", "copy")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "source": self.source,
            "images": self.images,
            "splits": self.splits,
            "classes": self.classes,
            "several_labels_per_image": self.multi_label,
            "share_of_the_largest_class": self.largest_share,
            "formats": self.formats,
            "sizes": {
                name: [int(side) for side in size]
                for name, size in zip(_EXTREMES, self._extremes, strict=False)
            },
            "skipped": [{"file": image.file, "reason": image.reason} for image in self.skipped],
            "left_out": list(self.left_out),
            "copies": copies_dicts(self.copies),
        }

    @property
    def _by_count(self) -> list[tuple[str, int]]:
        return sorted(self.classes.items(), key=lambda item: -item[1])

    @property
    def _extremes(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Smallest, median and largest size, by pixels; each is one that occurs."""
        order = self.sizes.prod(1).argsort(kind="stable")
        places = (0, len(order) // 2, -1) if len(order) else ()
        return tuple(self.sizes[order[at]] for at in places)

    def _sizes(self) -> str:
        if not len(self.sizes):
            return "no sizes: the files cannot be read any more"
        least, middle, most = (f"{width} x {height}" for width, height in self._extremes)
        kinds = ", ".join(f"{name} {count:,}" for name, count in self.formats.items())
        if least == most and len(np.unique(self.sizes, axis=0)) == 1:
            return f"all {least} pixels; {kinds}"
        return f"from {least} to {most} pixels, the median {middle}; {kinds}"

    def _classes(self) -> str:
        found = self._by_count
        if len(found) <= 4 * SHOWN:
            return "classes: " + ", ".join(f"{name} {count:,}" for name, count in found)
        first, last = (
            ", ".join(f"{name} {count:,}" for name, count in some)
            for some in (found[: 2 * SHOWN], found[-SHOWN:])
        )
        return f"classes: {first}, ... {last}"


def survey(data: ImageData) -> Survey:
    """Look at all images: at the head of each file, not at its pixels.

    Splits that `load_data` cut count as what they came from.
    """
    sizes: list[tuple[int, int]] = []
    formats: Counter[str] = Counter()
    places: list[Place] = []
    seen: Counter[str] = Counter()  # images of each split so far
    for split, rows in data.splits.items():
        came_in = came_in_of(data, split)
        labels = labels_in(rows)
        names = [tuple(data.class_names[n] for n in data.labelling.each([own])) for own in labels]
        for row, ((content, path), classes) in enumerate(
            zip(stored_images(rows), names, strict=True)
        ):
            kind, size = _head(content, path)
            formats[kind] += 1
            sizes += [size] if size else []
            file = below(path, data.source) if path else f"row {row} of the split {split}"
            places.append(Place(came_in, seen[came_in] + row, file, classes))
        seen[came_in] += len(rows)
    counts = Counter(name for place in places for name in place.classes)
    digests = [digest for split in data.splits for digest in data.digests.get(split, ())]
    return Survey(
        source=data.source,
        splits=dict(Counter(place.split for place in places)),
        classes={name: counts[name] for name in data.class_names},
        multi_label=data.multi_label,
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        formats=dict(formats.most_common()),
        places=tuple(places),
        skipped=data.skipped,
        copies=groups_of(digests, places) if len(digests) == len(places) else (),
        left_out=data.left_out,
    )


def came_in_of(data: ImageData, split: str) -> str:
    """The split that a part came in: the training images where it was cut from these."""
    return "train" if split in data.split.shares else split


def groups_of(marks: Sequence[Any], places: Sequence[Place]) -> tuple[Copies, ...]:
    """Those that share a mark, where there are two or more; in the order of the first of each."""
    found: dict[Any, list[Place]] = {}
    for mark, place in zip(marks, places, strict=True):
        found.setdefault(mark, []).append(place)
    return tuple(Copies(tuple(group)) for group in found.values() if len(group) > 1)


def copies_lines(copies: Sequence[Copies], plural: str, one: str) -> list[str]:
    """How many there are, with examples, those that do harm first."""
    if not copies:
        return [f"{plural}: none"]
    extra = sum(len(group.places) - 1 for group in copies)
    lines = [
        f"{plural}: {extra:,} {one if extra == 1 else plural} of {counted(len(copies), 'image')}"
    ]
    kinds = {
        "in several splits": [group for group in copies if group.across_splits],
        "in several classes": [group for group in copies if group.across_classes],
        "in one split and class": [
            group for group in copies if not (group.across_splits or group.across_classes)
        ],
    }
    for what, groups in kinds.items():
        if groups:
            lines.append(f"  {len(groups):,} {what}:")
            lines += [f"    {group}" for group in groups[:SHOWN]]
            lines += ["    ..."] * (len(groups) > SHOWN)
    return lines


def copies_dicts(copies: Iterable[Copies]) -> list[dict[str, Any]]:
    """JSON-able."""
    return [
        {
            "across_splits": group.across_splits,
            "across_classes": group.across_classes,
            "images": [
                {"file": p.file, "split": p.split, "classes": list(p.classes)} for p in group.places
            ],
        }
        for group in copies
    ]


def below(path: str, source: str) -> str:
    """A path below the folder that the data lie in; as it is where it lies elsewhere."""
    folder = Path(source).expanduser().absolute()
    try:
        return str(Path(path).relative_to(folder))
    except ValueError:
        return path


def _head(content: Any, path: str | None) -> tuple[str, tuple[int, int] | None]:
    """Kind and size of an image that was found whole before; no size where it is so no more."""
    source = io.BytesIO(content) if content is not None else os.fspath(path or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of huge images and odd EXIF
            with Image.open(source) as image:
                return image.format or "unknown", image.size
    except Exception:  # whoever reads its pixels will say why
        return "unknown", None
