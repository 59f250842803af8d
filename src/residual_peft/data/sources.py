"""Where images come from: a Hub id, a folder of class folders or `datasets` objects."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from ..errors import ResiDualError
from ..hub.files import file_size, is_folder, read_json
from .folders import from_folder
from .skipped import SkippedImage
from .trees import tree_of


@dataclass(frozen=True)
class Source:
    """Images as they come.

    Attributes:
        name: what to call them in messages.
        splits: by the names that they have there.
        skipped: files that are in none of them, and why.
    """

    name: str
    splits: dict[str, Dataset]
    skipped: tuple[SkippedImage, ...] = ()


def find(
    source: Any,
    config: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The source's splits as they are.

    Raises:
        ResiDualError: nothing there, nothing reachable, no images, or no classes.
    """
    if isinstance(source, Dataset):
        return Source("the dataset", {"train": source})
    if isinstance(source, DatasetDict):
        return Source("the dataset", dict(source))
    if not isinstance(source, str | os.PathLike):
        raise ResiDualError(
            "wanted a folder, a Hub id, a datasets.Dataset or a DatasetDict, got "
            f"{type(source).__name__}; an iterable dataset must be read into a Dataset first."
        )
    path = Path(os.path.expanduser(source))  # as it is where there is no such user
    if path.is_file():
        raise ResiDualError(f"wanted a folder of class folders, got the file '{path}'.")
    if not path.is_dir():
        return Source(str(source), _from_hub(str(source), config, revision, token))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_disk(path)
    tree = tree_of(path)
    if tree.parquet:  # a copy of a Hub repository
        return Source(str(path), _from_hub(str(path), config, None, None))
    return Source(str(path), from_folder(tree, label_column), tuple(tree.skipped))


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
        return find(saved)
    except ResiDualError:
        raise
    except Exception as error:  # many kinds: arrow, JSON, missing files
        first = next(iter(str(error).splitlines()), "") or repr(error)
        raise ResiDualError(f"could not load the data saved in '{path}' ({first}).") from error


def _from_hub(
    name: str, config: str | None, revision: str | None, token: str | None
) -> dict[str, Dataset]:
    try:
        found = datasets.load_dataset(name, config, revision=revision, token=token)
    except Exception as error:  # many kinds, from the client, the builder and the network
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ResiDualError(
            f"could not load the data '{name}': it is no folder here, and the Hugging Face Hub did "
            f"not give it ({first}). Check the spelling and the connection, or give a folder with "
            "one folder of images per class."
            if not Path(name).is_dir()
            else f"could not load the data in '{name}' ({first})."
        ) from error
    return dict(found)
