"""Tables -> columns, every value as it stands there; tables beside images, read by imagefolder."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.table import InMemoryTable

from ..errors import ResiDualError, counted, first_line
from ..hub.files import file_size, quoted, read_bytes
from .checking import undecoded
from .columns import LABEL_COLUMNS
from .labels import label_item
from .trees import Parts, Tree

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
LARGEST_TABLE = 2**30  # bytes
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

Columns = dict[str, list[Any]]


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its ending."""
    return path.suffix.lower() in TABLES


def is_sheet(path: Path) -> bool:
    """Whether it is a spreadsheet's own file, which nobody here reads."""
    return path.suffix.lower() in _SHEETS


def read_table(path: Path) -> Columns | Dataset:
    """The columns of a table; of a parquet file with images in it, those as a dataset.

    Of a CSV file all values are text, and None where nothing stands.

    Raises:
        ResiDualError: no regular file, too large, cut short, without rows, or not in UTF-8.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    content = read_bytes(path, LARGEST_TABLE)
    try:
        text = content.decode(_MARKS.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ResiDualError(
            f"the table {quoted(path)} is not in UTF-8 (byte {error.start}); save it as such: "
            "spreadsheets call it 'CSV UTF-8'."
        ) from None
    found = _csv(path, text, kind) if kind in (".csv", ".tsv") else _json(path, text)
    if not found or not next(iter(found.values())):
        raise ResiDualError(f"wanted a table with a row per image in {quoted(path)}, got no rows.")
    return found


def _csv(path: Path, text: str, kind: str) -> Columns:
    # a comma, or what some spreadsheets write, stands between the names of the columns
    between = max(",;\t", key=text.partition("\n")[0].count)
    delimiter = "\t" if kind == ".tsv" else between
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ResiDualError(f"could not read the table {quoted(path)} ({error}).") from None
    header, *rest = rows or [[]]
    names = [name.strip() for name in header]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ResiDualError(f"the table {quoted(path)} has several columns '{twice[0]}'.")
    rest = [row for row in rest if any(cell.strip() for cell in row)]
    for number, row in enumerate(rest):
        if len(row) != len(names):
            raise ResiDualError(
                f"row {number} of the table {quoted(path)} has {len(row)} values, its header "
                f"{len(names)} ({', '.join(names)}); put what holds '{delimiter}' in quotes."
            )
    return {name: [row[i].strip() or None for row in rest] for i, name in enumerate(names)}


def _json(path: Path, text: str) -> Columns:
    """Objects, one a line or in a list; or splits as CoOp writes them."""
    # not `splitlines`, which parts lines at what may stand in a JSON text, too, such as U+2028
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    try:
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            if _is_coop(found):
                told = [(path, name, split) for split in found for path, _, name in found[split]]
                columns = map(list, zip(*told, strict=True))
                return dict(zip(("image", "label", "split"), columns, strict=False))
            rows = found if isinstance(found, list) else [found]
        else:
            rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ResiDualError(
            f"could not read the table {quoted(path)} as JSON ({error}); wanted an object such as "
            '{"file_name": "a.png", "label": "cat"} per line.'
        ) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ResiDualError(
                f"row {number} of the table {quoted(path)} is {type(row).__name__}, wanted an "
                'object such as {"file_name": "a.png", "label": "cat"}.'
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _is_coop(parsed: Any) -> bool:
    """Whether it is a file such as split_zhou_Caltech101.json.

    For each split a list of [path, number of the class, its name] (KaiyangZhou/CoOp, DATASETS.md).
    """
    return (
        isinstance(parsed, dict)
        and bool(parsed)
        and all(isinstance(rows, list) for rows in parsed.values())
        and all(
            isinstance(row, list) and [type(value) for value in row] == [str, int, str]
            for rows in parsed.values()
            for row in rows
        )
    )


def _parquet(path: Path) -> Columns | Dataset:
    file_size(path)  # a pipe would hold up whoever opens it
    try:
        table = pyarrow.parquet.read_table(path)
        table.validate(full=True)
        features = Features.from_arrow_schema(table.schema)
    except Exception as error:  # arrow's, of many kinds
        why = first_line(error)
        raise ResiDualError(f"could not read the table {quoted(path)} ({why}).") from error
    if not table.num_rows:
        raise ResiDualError(f"wanted a table with a row per image in {quoted(path)}, got no rows.")
    if any(_holds_images(kind) for kind in features.values()):
        return Dataset(InMemoryTable(table.cast(features.arrow_schema)))
    return table.to_pydict()


def _holds_images(kind: Any) -> bool:
    """Whether a column has images in it: the type of datasets, or its bytes and path."""
    return type(kind).__name__ == "Image" or (isinstance(kind, dict) and "bytes" in kind)


def is_table_of_images(path: Path) -> bool:
    """Whether a parquet file has images in it; of one that cannot be read whoever reads it says.

    Raises:
        ResiDualError: no regular file.
    """
    file_size(path)  # a pipe would hold up whoever opens it
    try:
        features = Features.from_arrow_schema(pyarrow.parquet.read_schema(path))
    except Exception:  # arrow's, of many kinds
        return True
    return any(map(_holds_images, features.values()))


def columns_of(source: Any) -> Columns | None:
    """The columns of a pandas DataFrame, or of pairs of an image and its label; None for others.

    Raises:
        ResiDualError: a list that holds something else, or nothing; a DataFrame without rows, or
            with two columns of one name.
    """
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "to_dict"):
        if not hasattr(source, "columns"):
            raise ResiDualError("wanted a DataFrame of images and labels, got one column of it.")
        names = list(map(str, source.columns))
        if twice := [name for name in names if names.count(name) > 1]:
            raise ResiDualError(f"the DataFrame has several columns '{twice[0]}'.")
        if not len(source):
            raise ResiDualError("wanted a DataFrame with a row per image, got no rows.")
        columns = {str(name): source[name].astype(object) for name in source.columns}
        # NaN, NaT and NA are None from here on
        return {
            name: column.where(column.notna(), None).tolist() for name, column in columns.items()
        }
    if not isinstance(source, list | tuple):
        return None
    for number, pair in enumerate(source):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ResiDualError(
                "wanted a list of (image, label) pairs such as [('a.png', 'cat')], got "
                f"{type(pair).__name__} as item {number}."
            )
    if not source:
        raise ResiDualError("wanted a list of (image, label) pairs, got an empty one.")
    return {"image": [image for image, _ in source], "label": [label for _, label in source]}


def read_metadata(root: Path, files: Sequence[Parts], split: str) -> Dataset:
    """The images that a split's metadata name, with all that they say of them, in memory.

    `files` lie below `root`, which is absolute: so are the paths of the images.

    Raises:
        ResiDualError: they cannot be read, or have no column of file names.
    """
    paths = [str(root.joinpath(*file)) for file in files]
    # as a resolved list, so that a folder's name is never taken for a pattern
    chosen = DataFilesDict({split: DataFilesList(paths, [(path,) for path in paths])})
    barless = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = ImageFolder(cache_dir=cache, data_files=chosen)
            builder.download_and_prepare()
            return builder.as_dataset(split=split, in_memory=True)
    except Exception as error:  # many kinds, from pandas, arrow and the builder
        cause = error.__cause__ or error.__context__ or error  # what the builder met itself
        raise ResiDualError(
            f"could not read '{paths[0]}' ({first_line(cause)}); wanted a table with a column "
            "file_name, of paths below the table's folder, and a column label."
        ) from error
    finally:
        if not barless:
            datasets.enable_progress_bars()


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


def unnamed(tree: Tree, parts: Iterable[Dataset]) -> list[str]:
    """How many images of a folder its metadata do not name, in words; nothing for none."""
    named = {path for rows in parts for path in paths_in(rows)}
    left = [path for path in tree.images if str(tree.base.joinpath(*path)) not in named]
    example = f", such as '{'/'.join(left[0])}'" if left else ""
    return [f"{counted(len(left), 'image')} that no metadata name{example}"] if left else []
