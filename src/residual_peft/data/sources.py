"""Where images come from: a Hub id, a folder, a table, an archive, or objects that hold them."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from ..errors import ResiDualError, first_line
from ..hub.files import file_size, is_file, is_folder, near_miss, path_of, read_json
from .archives import is_archive, unpacked
from .class_list import CLASSES, ClassList, class_list_in
from .columns import Options
from .folders import from_folder
from .listed import from_columns
from .skipped import SkippedImage
from .tables import columns_of, is_sheet, is_table, is_table_of_images, read_table
from .trees import METADATA, tree_of


@dataclass(frozen=True)
class Source:
    """Images as they come.

    Attributes:
        name: what to call them in messages.
        splits: by the names that they have there.
        skipped: files that are in none of them, and why.
        classes: what a list of them beside the images says.
        left_out: what else lies there and is not taken for images, in words.
    """

    name: str
    splits: dict[str, Dataset]
    skipped: tuple[SkippedImage, ...] = ()
    classes: ClassList | None = None
    left_out: tuple[str, ...] = ()


def find(source: Any, options: Options) -> Source:
    """The source's splits as they are; `load_data` says what a source is.

    Raises:
        ResiDualError: nothing there, nothing reachable, no images, or no classes.
    """
    if isinstance(source, Dataset):
        return Source("the dataset", {"train": source})
    if isinstance(source, DatasetDict):
        return Source("the dataset", dict(source))
    if (columns := columns_of(source)) is not None:
        return Source("the data", from_columns(columns, Path.cwd(), "the data", options))
    if not isinstance(source, str | os.PathLike):
        raise ResiDualError(
            "wanted a folder, a table, a zip or tar, a Hub id, a datasets.Dataset or a "
            "DatasetDict, a DataFrame or a list of (image, label) pairs, got "
            f"{type(source).__name__}; an iterable dataset must be read into a Dataset first."
        )
    if not os.fspath(source):  # which as a path would be the current folder
        raise ResiDualError("wanted the name of a folder, a table or a Hub id, got an empty one.")
    path = path_of(source)  # as it is where there is no such user
    if is_file(path):
        return _from_file(path, options)
    if is_folder(path):
        return _from_folder(path, options)
    if is_archive(path) or is_table(path):
        raise ResiDualError(f"wanted data in '{path}', but there is no such file.")
    return Source(str(source), _from_hub(str(source), options))


def _from_file(path: Path, options: Options) -> Source:
    if is_archive(path):
        folder = unpacked(path)
        # less folders around it that hold nothing else, as archives have them
        while len(inner := list(folder.iterdir())) == 1 and is_folder(inner[0]):
            folder = inner[0]
        return replace(_from_folder(folder, options), name=str(path))
    if is_sheet(path):
        raise ResiDualError(
            f"wanted a table that is plain text, got the spreadsheet '{path}'; save it as CSV "
            "(UTF-8), with a column file_name and a column label."
        )
    if not is_table(path):
        raise ResiDualError(
            "wanted a folder of class folders, a table (CSV, TSV, JSON lines, parquet) or a zip or "
            f"tar, got the file '{path}'."
        )
    table = read_table(path)
    parts = (
        {"train": table}
        if isinstance(table, Dataset)
        else from_columns(table, path.parent, str(path), options)
    )
    return Source(str(path), parts, classes=class_list_in(path.parent))


def _from_folder(path: Path, options: Options) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_disk(path)
    tree = tree_of(path)
    parquet = (tree.base.joinpath(*parts) for parts in tree.parquet)
    if tree.parquet and (not tree.images or any(map(is_table_of_images, parquet))):
        # a copy of a Hub repository
        return Source(str(path), _from_hub(str(path), replace(options, revision=None, token=None)))
    try:
        parts = from_folder(tree, options.label_column)
    except ResiDualError:
        # images beside each other may be listed in the one table there is
        endings, others = (".csv", ".tsv", ".jsonl", ".parquet"), (CLASSES, *METADATA)
        named = [each for each in sorted(path.iterdir()) if each.suffix.lower() in endings]
        tables = [each for each in named if each.name not in others and is_file(each)]
        if len(tables) != 1:
            raise
        return replace(_from_file(tables[0], options), name=str(path))
    left_out = tuple(tree.left_out)
    return Source(str(path), parts, tuple(tree.skipped), class_list_in(path), left_out)


def _from_disk(path: Path) -> Source:
    # a pipe would hold datasets up, and what is nested too deep ends in a RecursionError
    for part in sorted(p for p in path.rglob("*") if not is_folder(p)):
        file_size(part)
        if part.suffix == ".json":
            read_json(part)
    try:
        saved = datasets.load_from_disk(str(path))
        for part in saved.values() if isinstance(saved, DatasetDict) else [saved]:
            part.data.validate(full=True)  # offsets that lead elsewhere end the process
        return find(saved, Options())
    except ResiDualError:
        raise
    except Exception as error:  # many kinds: arrow, JSON, missing files
        why = first_line(error)
        raise ResiDualError(f"could not load the data saved in '{path}' ({why}).") from error


def _from_hub(name: str, options: Options) -> dict[str, Dataset]:
    try:
        found = datasets.load_dataset(
            name, options.config, revision=options.revision, token=options.token
        )
    except Exception as error:  # many kinds, from the client, the builder and the network
        first = first_line(error)
        raise ResiDualError(
            f"could not load the data '{name}': it is no folder here{near_miss(name)}, and the "
            f"Hugging Face Hub did not give it ({first}). Check the spelling and the connection, "
            "or give a folder with one folder of images per class."
            if not Path(name).is_dir()
            else f"could not load the data in '{name}' ({first})."
        ) from error
    return dict(found)
