"""Tables as people have them: what separates, what quotes, which encoding, and what is no table."""

import json
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from datasets import Dataset, Features, Image, Value

from residual_peft.data.tables import columns_of, is_sheet, is_table, read_table
from residual_peft.errors import ResiDualError
from tests.pairs import table

ROWS = {"file_name": ["a.png", "b, c.png"], "label": ["cat", "grüne Ente"]}
OBJECTS = [{name: values[row] for name, values in ROWS.items()} for row in range(2)]


@table(
    ("name", "text"),
    [
        ("t.csv", 'file_name,label\na.png,cat\n"b, c.png",grüne Ente\n'),
        ("t.csv", 'file_name;label\r\na.png;cat\r\n"b, c.png";grüne Ente\r\n\r\n'),
        ("t.csv", "\ufeff file_name , label \na.png , cat\n\"b, c.png\",grüne Ente"),
        ("t.TSV", "file_name\tlabel\na.png\tcat\nb, c.png\tgrüne Ente\n"),
        ("t.jsonl", "\n".join(map(json.dumps, OBJECTS))),
        ("t.json", json.dumps(OBJECTS)),
    ],
)  # fmt: skip
def test_tables_of_every_kind_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert is_table(path)
    assert read_table(path) == ROWS


def test_what_spreadsheets_call_unicode_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("file_name,label\na.png,Ente\n".encode("utf-16"))
    assert read_table(path) == {"file_name": ["a.png"], "label": ["Ente"]}
    (tmp_path / "t.jsonl").write_text('{"label": "a\u2028b"}\r\n{"label": "c\x85d"}', "utf-8")
    assert read_table(tmp_path / "t.jsonl") == {"label": ["a\u2028b", "c\x85d"]}


def test_nothing_is_none_in_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file_name,label\na.png,\nb.png, \n,\n")
    found = read_table(tmp_path / "t.csv")
    assert found == {"file_name": ["a.png", "b.png"], "label": [None, None]}


def test_parquet_of_paths_is_columns_and_of_images_a_dataset(tmp_path: Path) -> None:
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet") == ROWS
    features = Features({"image": Image(), "label": Value("string")})
    content = {"bytes": b"1", "path": None}
    made = Dataset.from_dict({"image": [content], "label": ["cat"]}, features=features)
    made.to_parquet(tmp_path / "i.parquet")
    found = read_table(tmp_path / "i.parquet")
    assert isinstance(found, Dataset)
    assert found.features == features
    assert found.cast_column("image", Image(decode=False))[0]["image"]["bytes"] == b"1"


@table(
    ("name", "content", "message"),
    [
        ("t.csv", "Ä,label\n".encode("cp1252"), "is not in UTF-8 (byte 0); save it as such"),
        ("t.csv", b"a,a\n1,2\n", "has several columns 'a'"),
        ("t.csv", b"a,b\n1,2,3\n", "row 0 of the table "),
        ("t.csv", b'a,b\n"1,2\n', "could not read the table "),
        ("t.csv", b"a,b\n", "got no rows"),
        ("t.csv", b"", "got no rows"),
        ("t.jsonl", b'{"a": 1}\n[2]\n', "row 1 of the table "),
        ("t.jsonl", b"a\n", "wanted an object such as "),
        ("t.json", b"[" * 100_000, "could not read the table "),
        ("t.json", b"[]", "got no rows"),
        ("t.parquet", b"PAR1 but no more", "could not read the table "),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_line(tmp_path: Path, name, content, message) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ResiDualError) as raised:
        read_table(path)
    assert message in str(raised.value)
    assert name in str(raised.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ResiDualError, match="as a plain file, got a pipe"):
            read_table(tmp_path / name)


def test_frames_and_pairs_are_columns() -> None:
    frame = pandas.DataFrame({"path": ["a.png", None, "c.png"], "label": [1.0, np.nan, 3.0]})
    assert columns_of(frame) == {"path": ["a.png", None, "c.png"], "label": [1.0, None, 3.0]}
    kinds = pandas.DataFrame(
        {"label": pandas.Series(["x", pandas.NA], dtype="string"), 7: [[1], []]}
    )
    assert columns_of(kinds) == {"label": ["x", None], "7": [[1], []]}
    counts = pandas.DataFrame({"n": np.array([3, 4], dtype=np.int32)})
    assert [type(value) for value in (columns_of(counts) or {})["n"]] == [int, int]
    pairs = [("a.png", "cat"), ["b.png", "dog"]]
    assert columns_of(pairs) == {"image": ["a.png", "b.png"], "label": ["cat", "dog"]}
    with pytest.raises(ResiDualError, match="with a row per image, got no rows"):
        columns_of(frame[:0])
    with pytest.raises(ResiDualError, match="several columns 'label'"):
        columns_of(frame[["path", "label", "label"]])
    assert columns_of("photos") is None
    assert columns_of({"image": []}) is None


@table(
    ("given", "message"),
    [
        ([], "got an empty one"),
        ([("a.png", "cat"), "b.png"], "got str as item 1"),
        ([("a.png", "cat", 1)], "got tuple as item 0"),
        (pandas.Series(["a.png"]), "got one column of it"),
    ],
)
def test_what_is_no_list_of_pairs(given, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        columns_of(given)


def test_spreadsheets_are_known_by_their_endings() -> None:
    assert is_sheet(Path("Labels.XLSX"))
    assert not is_sheet(Path("labels.csv"))
