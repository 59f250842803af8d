"""Tables beside images that say what these are, read by the imagefolder of datasets itself."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..errors import ResiDualError, counted, first_line
from .checking import undecoded
from .columns import LABEL_COLUMNS
from .labels import label_item
from .trees import Parts, Tree


def read_metadata(root: Path, files: Sequence[Parts], split: str) -> Dataset:
    """The images that a split's metadata name, with all that they say of them, in memory.

    `files` lie below `root`, which is absolute: so are the paths of the images.

    Raises:
        ResiDualError: they cannot be read, or have no column of file names.
    """
    paths = [str(root.joinpath(*file)) for file in files]
    # as a resolved list, so that a folder's name is never taken for a pattern
    chosen = DataFilesDict({split: DataFilesList(paths, [(path,) for path in paths])})
    try:
        with tempfile.TemporaryDirectory() as cache, _quiet():
            builder = ImageFolder(cache_dir=cache, data_files=chosen)
            builder.download_and_prepare()
            return builder.as_dataset(split=split, in_memory=True)
    except Exception as error:  # many kinds, from pandas, arrow and the builder
        cause = error.__cause__ or error.__context__ or error  # what the builder met itself
        raise ResiDualError(
            f"could not read '{paths[0]}' ({first_line(cause)}); wanted a table with a column "
            "file_name, of paths below the table's folder, and a column label."
        ) from error


def has_labels(dataset: Dataset, label_column: str | None) -> bool:
    """Whether one of the columns is named or typed as labels are."""
    features = dataset.features
    return (
        label_column in features
        or any(column in features for column in LABEL_COLUMNS)
        or any(isinstance(label_item(kind), ClassLabel) for kind in features.values())
    )


def paths_in(dataset: Dataset) -> list[str | None]:
    """Path of the first image of every row."""
    column = next(c for c, kind in dataset.features.items() if isinstance(kind, datasets.Image))
    return [image and image["path"] for image in undecoded(dataset, column)[:][column]]


def unnamed(tree: Tree, found: Iterable[Dataset]) -> list[str]:
    """How many images of a folder its metadata do not name, in words; nothing for none."""
    named = {path for rows in found for path in paths_in(rows)}
    left = [path for path in tree.images if str(tree.base.joinpath(*path)) not in named]
    example = f", such as '{'/'.join(left[0])}'" if left else ""
    return [f"{counted(len(left), 'image')} that no metadata name{example}"] if left else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of datasets."""
    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
