"""Columns of paths and labels -> splits of images: which column is which, and where the files are.

What people have is seldom as it was meant: paths below another folder than the table's, names
without their endings, backslashes, a header that is missing. What can be told is taken as it is
meant, and said; the rest ends in a message that names the columns and the first row.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features
from PIL import Image
from torch import Tensor

from ..errors import ResiDualError, counted, first_line, printable, short
from .columns import IMAGE_COLUMNS, LABEL_COLUMNS, Options
from .folders import CANONICAL_SPLIT, SPLIT_NAMES
from .images import to_rgb
from .inputs import stored
from .labels import labelling_of
from .labels.columns import each_of, folded, labels_of, text_of
from .tables import Columns
from .trees import tree_of

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("file_name", "filename", "file", "path", "filepath", "file_path", "image_path")
MORE_LABELS = ("category", "class_name", "species", "tags")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")
_TRIED = 50  # paths, to see where they begin
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def from_columns(columns: Columns, base: Path, name: str, options: Options) -> dict[str, Dataset]:
    """Split -> its images and labels, in columns `image` and `label` or as they were named.

    Paths are below `base`. Columns are found when None, and that of groups is kept beside them as
    text.

    Raises:
        ResiDualError: no such columns, or none that could be meant; a row without an image.
    """
    columns = _with_header(columns)
    image = _chosen(columns, options.image_column, (*PATH_COLUMNS, *IMAGE_COLUMNS), _are_paths)
    if image is None:
        raise _no_column(columns, name, "file names or images", "image_column", IMAGE_COLUMNS)
    others = {column: values for column, values in columns.items() if column != image}
    split = next((c for c in others if folded(c) in SPLIT_COLUMNS and _splits(others[c])), None)
    if split is None:
        _check_splits(others, name)
    others.pop(split or "", None)
    label = _chosen(others, options.label_column, (*LABEL_COLUMNS, *MORE_LABELS), lambda _: False)
    alone = [column for column in others if column != options.group_column]
    if label is None and options.label_column is None and len(alone) == 1:
        label = alone[0]
    if label is None:
        raise _no_column(columns, name, "labels", "label_column", LABEL_COLUMNS)
    shown = (image if options.image_column else "image", label if options.label_column else "label")
    _check_groups(options.group_column, (image, label), shown, name)
    groups = others.get(options.group_column or "")
    images = _images_of(columns[image], base, name)
    labels = labels_of(others[label], label, options.numbers)
    parts = [None] * len(images) if split is None else columns[split]
    rows: dict[str, list[int]] = {}
    for row, part in enumerate(parts):
        own = "train" if part is None else CANONICAL_SPLIT[str(part).strip().lower()]
        rows.setdefault(own, []).append(row)
    found = {}
    for part in (part for part in SPLIT_NAMES if part in rows):
        mine = rows[part]
        found[part] = _dataset(
            [images[row] for row in mine], [labels[row] for row in mine], shown, name
        )
        if groups is not None:
            texts = [text_of(groups[row]) for row in mine]
            found[part] = found[part].add_column(
                options.group_column, texts, feature=datasets.Value("string")
            )
    return found


def _check_groups(
    group: str | None, columns: tuple[str, str], shown: tuple[str, str], name: str
) -> None:
    """Raise a ResiDualError where groups are images or labels, or would be called so.

    `columns` are those of the two, `shown` what they will be called.
    """
    for kind, own, other in zip(("image", "label"), columns, shown, strict=True):
        if group == own:
            raise ResiDualError(
                f"the column '{group}' of {name} cannot be both {kind} and group; name another "
                f"group_column, or the {kind}_column."
            )
        if group == other:
            raise ResiDualError(
                f"the groups of {name} lie in '{group}', and its {kind}s in '{own}', found by "
                f"itself: say so with {kind}_column='{own}'."
            )


def _chosen(
    columns: Columns,
    requested: str | None,
    names: Sequence[str],
    looks: Callable[[list[Any]], bool],
) -> str | None:
    """The column that is asked for; else one of these names, else the only one that looks so."""
    if requested is not None:
        return requested if requested in columns else None
    named = {folded(column): column for column in reversed(columns)}
    for name in names:
        if name in named:
            return named[name]
    alike = [column for column, values in columns.items() if looks(values)]
    return alike[0] if len(alike) == 1 else None


def _no_column(
    columns: Columns, name: str, what: str, option: str, usual: Sequence[str]
) -> ResiDualError:
    return ResiDualError(
        f"{name} has no column of {what} that could be told among {', '.join(columns)}; name it "
        f"with {option}= (--{option.replace('_', '-')}), or call it '{usual[0]}'."
    )


def _with_header(columns: Columns) -> Columns:
    """The columns; where the first row was taken for their names, it is put back."""
    names = list(columns)
    paths = [name for name in names if name.lower().endswith(_ENDINGS)]
    if len(names) != 2 or len(paths) != 1:
        return columns
    logger.warning("the first row is taken for an image: the table has no names of columns")
    label = next(name for name in names if name != paths[0])
    return {"file_name": [paths[0], *columns[paths[0]]], "label": [label, *columns[label]]}


def _are_paths(values: list[Any]) -> bool:
    return all(
        (isinstance(value, str) and value.lower().endswith(_ENDINGS))
        or isinstance(value, Image.Image | os.PathLike)
        for value in values[:_TRIED]
    )


def _check_splits(columns: Columns, name: str) -> None:
    """Raise a ResiDualError where a column names splits in some rows, and in others does not."""
    for column in (c for c in columns if folded(c) in SPLIT_COLUMNS):
        known = [_splits([value]) for value in columns[column]]
        if any(known):
            row = known.index(False)
            raise ResiDualError(
                f"row {row} of {name} has {short(columns[column][row])} in the column '{column}', "
                f"which names splits in others; wanted {', '.join(SPLIT_NAMES)} in each: remove "
                "the rows, or call the column otherwise for images to be shared out anew."
            )


def _splits(values: list[Any]) -> bool:
    """Whether a column names splits in every row."""
    return {str(value).strip().lower() for value in values} <= set(CANONICAL_SPLIT)


def _images_of(values: list[Any], base: Path, name: str) -> list[Any]:
    """Images, or absolute paths of them, wherever they are meant to begin."""
    for row, value in enumerate(values):
        if value is None:
            raise ResiDualError(f"row {row} of {name} has no image; remove it.")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            raise ResiDualError(
                f"row {row} of {name} is an address on the web ({short(value)}); download the "
                "images first, and name the files."
            )
    texts = [os.fspath(value) for value in values if isinstance(value, str | os.PathLike)]
    if len(texts) < len(values):
        return [_stored(value, f"row {row} of {name}") for row, value in enumerate(values)]
    return _resolved(texts, base, name)


def _stored(value: Any, name: str) -> Any:
    if isinstance(value, bytes | bytearray) or hasattr(value, "read"):
        return stored(value)
    if isinstance(value, str | os.PathLike):
        return os.path.abspath(value)
    # datasets knows PIL's images and some arrays, and gives none of these another meaning than we
    return to_rgb(value, name) if isinstance(value, np.ndarray | Tensor) else value


def _resolved(texts: list[str], base: Path, name: str) -> list[str]:
    if "\\" in "".join(texts[:_TRIED]) and os.sep == "/":
        texts = [text.replace("\\", "/") for text in texts]
    bases = [base.absolute(), Path.cwd()]
    for folder in bases:
        found = [os.path.normpath(folder / text) for text in texts]
        if any(map(os.path.exists, found[:_TRIED])):
            if folder != bases[0]:
                logger.warning("%s: paths are below '%s'", printable(name), printable(folder))
            return found
    return _by_name(texts, base, name)


def _by_name(texts: list[str], base: Path, name: str) -> list[str]:
    """Paths of files below the base that end so, with or without the endings of their names.

    Raises:
        ResiDualError: none does.
    """
    tree = tree_of(base)
    known: dict[str, str | None] = {}  # the end of a path -> the whole; None where two end so
    for parts in tree.images:
        path = str(tree.base.joinpath(*parts))
        for ending in ("/".join(parts[start:]) for start in range(len(parts))):
            for key in (ending, os.path.splitext(ending)[0]):
                known[key] = path if known.get(key, path) == path else None
    found: list[str | None] = []
    for text in texts:  # the file whose path ends as this one does, in as many folders as can be
        parts = tuple(text.split("/"))
        endings = ("/".join(parts[start:]) for start in range(len(parts)))
        found.append(next((file for ending in endings if (file := known.get(ending))), None))
    if not any(found):
        raise ResiDualError(
            f"none of the {counted(len(texts), 'image')} that {name} names is there: the first is "
            f"'{texts[0]}', wanted below '{base}'. Move the table beside the images, or write "
            "their paths below its folder."
        )
    folders = Counter(os.path.dirname(path) for path in found if path).most_common(1)
    logger.warning(
        "%s: %s of %d found by their names, most in '%s'",
        printable(name),
        counted(sum(map(bool, found)), "image"),
        len(found),
        printable(folders[0][0]),
    )
    return [path or str(base.absolute() / text) for path, text in zip(found, texts, strict=True)]


def _dataset(images: list[Any], labels: list[Any], columns: tuple[str, str], name: str) -> Dataset:
    value = next((label for label in labels if label is not None), "")
    labelling = labelling_of(isinstance(value, list))
    first = next((each for label in labels for each in each_of(label)), "")
    kind: Any = datasets.Value("int64" if isinstance(first, int) else "string")
    features = Features({columns[0]: datasets.Image(), columns[1]: labelling.feature(kind)})
    try:
        return Dataset.from_dict({columns[0]: images, columns[1]: labels}, features=features)
    except Exception as error:  # arrow's, of many kinds
        raise ResiDualError(
            f"the images and labels of {name} cannot stand in one table ({first_line(error)}); "
            "wanted a path or an image, and one class name (or a list of them), in every row."
        ) from error
