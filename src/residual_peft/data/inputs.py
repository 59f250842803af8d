"""What a user names as images to classify -> one item per image; a folder stands for those in it.

Needs no `datasets`, as loading an adapter and classifying files with it does not.
"""

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import ResiDualError, printable
from ..hub.files import inside, is_folder, path_of
from .images import ImageLike, image_list
from .skipped import SkippedImage
from .trees import tree_of

logger = logging.getLogger(__name__)

Images = ImageLike | bytes | IO[bytes] | Iterable[Any]
"""One image or many: PIL, an array, a tensor, bytes, a file object, a path; a folder, a pattern
such as "photos/*.jpg", a `datasets.Dataset`, or a list of any of these."""


def images_of(images: Images) -> tuple[Sequence[ImageLike], bool]:
    """The images one by one, as `images.to_rgb` takes them, and whether a single one was meant.

    A folder, a pattern and a dataset are many, whatever they hold.

    Raises:
        ResiDualError: a folder without images, a pattern of no file, or a dataset without a column
            of images.
    """
    datasets = sys.modules.get("datasets")  # a Dataset has nobody who did not import that
    if datasets is not None and isinstance(images, datasets.Dataset):
        from .checking import undecoded
        from .columns import check_format, image_column_of

        check_format(images, "the dataset")
        column = image_column_of(images.features, "the dataset")
        return undecoded(images, column)[column], False  # each is read when it is asked for
    if isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read"):
        return [stored(images)], True
    items, single = image_list(images)  # type: ignore[arg-type]
    found: list[ImageLike] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            paths = list(files_in([item]))
            single &= paths == [os.fspath(item)]
            for path in paths:
                if isinstance(path, SkippedImage):
                    raise ResiDualError(f"wanted images, got {path}.")
                found.append(path)
        else:
            found.append(stored(item))
    return found, single


def files_in(
    names: Iterable[str | os.PathLike[str]], *, but: str | os.PathLike[str] | None = None
) -> Iterator[str | SkippedImage]:
    """The files that names of files, folders and patterns stand for, in their order.

    A file is taken as it is, whatever its name. Of a folder those with the ending of an image, at
    any depth, hidden ones left out, and those in the folder `but`. A name that nothing has is a
    pattern if there is *, ? or [ in it, `**` for any folders; else it is given back, to be found
    missing by whoever reads it. What holds no files comes with the reason.
    """
    for given in names:
        name = os.fspath(given)
        path = os.fspath(path_of(name))
        if is_folder(path):
            yield from _in_folder(path, but)
        elif os.path.lexists(path.partition("\0")[0]) or not glob.has_magic(path):
            yield path
        else:
            matches = sorted(glob.glob(path, recursive=True))
            for match in matches:
                # of a folder that ** gives, its files are there as well
                if not is_folder(match):
                    yield match
                elif "**" not in path:
                    yield from _in_folder(match, but)
            if not matches:
                yield SkippedImage(name, "no file is called so")


def _in_folder(path: str, but: str | os.PathLike[str] | None) -> Iterator[str | SkippedImage]:
    try:
        tree = tree_of(Path(path), any_name=True)
    except ResiDualError as error:
        yield SkippedImage(path, str(error))
        return
    found = [os.path.join(path, *parts) for parts in tree.images]
    if but is not None and is_folder(but):
        found = [file for file in found if not inside(file, but)]
    yield from found
    yield from tree.skipped
    if not found and tree.images:
        yield SkippedImage(path, "all its images are where copies go: those are not read")
    elif not found and not tree.skipped:
        yield SkippedImage(path, f"a folder without images{tree.instead()}")
    elif left_out := ", ".join(tree.unread_pictures()):
        logger.warning("%s: left out %s", printable(path), left_out)


def stored(image: Any) -> Any:
    """Bytes and file objects as `datasets` stores what has no path; others as they are."""
    if isinstance(image, bytes | bytearray | memoryview):
        return {"bytes": bytes(image), "path": None}
    if hasattr(image, "read") and not hasattr(image, "convert"):  # which a PIL image has
        content = image.read()
        if not isinstance(content, bytes):
            raise ResiDualError(
                "wanted an image as a file object that gives bytes, got one that gives "
                f"{type(content).__name__}: open it with mode 'rb'."
            )
        return {"bytes": content, "path": None}
    return image
