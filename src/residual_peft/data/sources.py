"""Where images come from: a Hub id, a folder of class folders or `datasets` objects."""

import os
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image

from ..errors import ResiDualError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
CANONICAL_SPLIT = {alias: name for name, aliases in SPLIT_NAMES.items() for alias in aliases}


def find(
    source: Any, config: str | None, revision: str | None, token: str | None
) -> tuple[str, dict[str, Dataset]]:
    """What to call the source in messages, and its splits as they are.

    Raises:
        ResiDualError: nothing there, nothing reachable, no images, or an empty class folder.
    """
    if isinstance(source, Dataset):
        return "the dataset", {"train": source}
    if isinstance(source, DatasetDict):
        return "the dataset", dict(source)
    if not isinstance(source, str | os.PathLike):
        raise ResiDualError(
            "wanted a folder, a Hub id, a datasets.Dataset or a DatasetDict, got "
            f"{type(source).__name__}; an iterable dataset must be read into a Dataset first."
        )
    path = Path(source).expanduser()
    if path.is_file():
        raise ResiDualError(f"wanted a folder of class folders, got the file '{path}'.")
    if not path.is_dir():
        return str(source), _from_hub(str(source), config, revision, token)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return find(datasets.load_from_disk(str(path)), None, None, None)
    if any(path.rglob("*.parquet")):  # a copy of a Hub repository
        return str(path), _from_hub(str(path), config, None, None)
    return str(path), _from_folder(path)


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


def _from_folder(root: Path) -> dict[str, Dataset]:
    folders = _folders(root)
    if folders and all(folder.name.lower() in CANONICAL_SPLIT for folder in folders):
        parts = {folder.name.lower(): folder for folder in folders}
    else:
        parts = {"train": root}
    files = {split: _class_files(folder) for split, folder in parts.items()}
    reference = next((s for s in files if CANONICAL_SPLIT[s] == "train"), next(iter(files)))
    names = sorted(files[reference])
    for split, classes in files.items():
        if unknown := sorted(set(classes) - set(names)):
            raise ResiDualError(
                f"the folder '{parts[split] / unknown[0]}' is a class that '{parts[reference]}' "
                "does not have; the classes must be those of the training images."
            )
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    return {
        split: Dataset.from_dict(
            {
                "image": [str(path) for name in names for path in classes.get(name, [])],
                "label": [names.index(name) for name in names for _ in classes.get(name, [])],
            },
            features=features,
        )
        for split, classes in files.items()
    }


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_files(root: Path) -> dict[str, list[Path]]:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    if not (folders := _folders(root)):
        raise ResiDualError(
            f"found no images in '{root}': wanted one folder of images per class in it, such as "
            f"'{root / 'cat'}' and '{root / 'dog'}'."
        )
    files = {
        folder.name: sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
        )
        for folder in folders
    }
    if empty := [name for name, paths in files.items() if not paths]:
        everything = "found no images in any class folder:" if len(empty) == len(files) else ""
        raise ResiDualError(
            f"{everything} the class folder '{root / empty[0]}' holds no images; add images of a "
            "kind that PIL reads or remove the folder.".strip()
        )
    return files
