"""What lies in a folder of images, read once."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..errors import ResiDualError, counted, printable
from ..hub.directories import ADAPTER_CONFIG
from .skipped import SkippedImage, is_text

logger = logging.getLogger(__name__)

PICTURES = (".svg", ".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".pdf")
"""How files end that people take for pictures, and PIL may not read."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

HEIC = ", as phones write them: save them as JPEG"
_PHONES = (".heic", ".heif")

Parts = tuple[str, ...]  # of a path below the root


@dataclass
class Tree:
    """What lies in a folder; hidden files, and folders that begin with two underscores, do not."""

    root: Path  # the folder, as it was named: for messages
    base: Path  # its absolute path, so that the images are found wherever this process goes
    # whatever has the ending of an image and is no folder, by path
    images: list[Parts] = field(default_factory=list)
    metadata: list[Parts] = field(default_factory=list)  # files named as imagefolder's metadata
    folders: list[Parts] = field(default_factory=list)  # all of them, the root left out
    parquet: list[Parts] = field(default_factory=list)  # such tables that are no metadata
    # ending -> how many files have it that is not that of an image
    endings: Counter[str] = field(default_factory=Counter)
    # those of them that people take for pictures (`PICTURES`)
    pictures: list[Parts] = field(default_factory=list)
    # what cannot be used: names that are not UTF-8, folders that may not be read
    skipped: list[SkippedImage] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # what else is not taken for images, in words

    def unread_pictures(self) -> list[str]:
        """How many pictures there are of which kind that PIL does not read, in words."""
        images = {_stem(path) for path in self.images}
        kinds: dict[str, list[bool]] = {}
        for path in self.pictures:
            kinds.setdefault(os.path.splitext(path[-1])[1].lower(), []).append(
                _stem(path) in images
            )
        return [
            f"{counted(len(kinds[kind]), f'{kind} file')} (no kind that PIL reads"
            f"{_beside(kinds[kind])}{HEIC if kind in _PHONES else ''})"
            for kind in PICTURES
            if kind in kinds
        ]

    def instead(self) -> str:
        """What files there are in place of images, if any."""
        found = [(kind, count) for kind, count in self.endings.most_common() if kind][:3]
        listed = ", ".join(f"{count:,} {kind}" for kind, count in found)
        advice = HEIC if any(kind in _PHONES for kind, _ in found) else ""
        return f", not {listed}{advice}" if listed else ""


def tree_of(root: Path, *, any_name: bool = False) -> Tree:
    """All that lies in a folder, links followed.

    With `any_name` names need not be UTF-8, which those in datasets must be.

    Raises:
        ResiDualError: the folder may not be read, or its path is not UTF-8.
    """
    base = root.absolute()  # with its links: they may be how a path came to be UTF-8
    if ".." in base.parts:  # which datasets takes for the folder above by name, links or not
        base = base.resolve()
    if not (any_name or is_text(str(base))):
        raise ResiDualError(
            f"the path of the folder '{base}' is not UTF-8, which paths in datasets must be; "
            "rename it or make a link to it."
        )
    tree = Tree(root, base)
    _walk(tree, (), image_endings(), frozenset(), any_name)
    return tree


def image_endings() -> set[str]:
    """How the names of files end that PIL may be able to read, in small letters, with their dot."""
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _walk(
    tree: Tree, place: Parts, known: set[str], above: frozenset[tuple[int, int]], any_name: bool
) -> None:
    path = tree.base.joinpath(*place)
    try:
        status = path.stat()
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        if not place:
            raise ResiDualError(
                f"could not read the folder '{tree.root}' ({error.strerror})."
            ) from None
        tree.skipped.append(SkippedImage(str(path), f"a folder: {error.strerror}"))
        return
    if (own := (status.st_dev, status.st_ino)) in above:
        return  # a link to a folder that it lies in
    if place and any(entry.name == ADAPTER_CONFIG for entry in entries):
        logger.warning("'%s' is left out: it is an adapter, not images", printable(path))
        return
    for entry in entries:
        name, here = entry.name, (*place, entry.name)
        if name.startswith("."):
            continue
        ending = os.path.splitext(name)[1].lower()
        named_as_image = ending in known
        if _is_folder(entry):
            if name.startswith("__"):
                continue
            tree.folders.append(here)
            before = len(tree.images) + len(tree.skipped)
            _walk(tree, here, known, above | {own}, any_name)
            if named_as_image and len(tree.images) + len(tree.skipped) == before:
                tree.skipped.append(SkippedImage(entry.path, "a folder, not a file"))
        elif named_as_image and not (any_name or all(map(is_text, here))):
            reason = "its name, or that of its folder, is not UTF-8; rename it"
            tree.skipped.append(SkippedImage(entry.path, reason))
        elif named_as_image:
            tree.images.append(here)
        elif name in METADATA:
            tree.metadata.append(here)
        else:
            tree.endings[ending] += 1
            tree.pictures += [here] if ending in PICTURES else []
        if name.endswith(".parquet") and name not in METADATA:
            tree.parquet.append(here)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _stem(path: Parts) -> Parts:
    return (*path[:-1], os.path.splitext(path[-1])[0])


def _beside(there: list[bool]) -> str:
    """Whether pictures have an image of their name beside them, where some have."""
    if not any(there):
        return ""
    alone = there.count(False)
    what = f"{alone:,} without" if alone else "each with"
    return f"; {what} an image of that name beside it"
