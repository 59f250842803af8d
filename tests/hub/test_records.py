"""A JSON file is read into a dataclass, and what does not fit is named with its file and field."""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from residual_peft.errors import ResiDualError
from residual_peft.hub.files import Within, read_json, read_object, read_record
from residual_peft.hub.files.parsing import MAX_BYTES, MAX_DEPTH
from tests.pairs import table


@dataclass(frozen=True)
class Part:
    name: str
    size: int | None = None


@dataclass(frozen=True)
class Whole:
    names: tuple[str, ...]
    count: Annotated[int, Within(0, 1000)]
    part: Part
    rate: float = 0.5
    kind: Literal["a", "b", 1] = "a"
    components: int | float | None = None
    parts: list[Part] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    pair: tuple[str, float] | None = None
    flag: bool = False
    free: Any = None

    def __post_init__(self) -> None:
        if self.count != len(self.names):
            raise ResiDualError(f"wanted {self.count} names, got {len(self.names)}.")


GOOD = {"names": ["x", "y"], "count": 2, "part": {"name": "p"}}


def put(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_every_field_has_the_type_that_it_says(tmp_path: Path) -> None:
    more = {
        "rate": 2,
        "kind": 1,
        "components": 3,
        "parts": [{"name": "q", "size": 4}],
        "sizes": {"k": 7},
        "facts": {"a": "b"},
        "pair": ["z", 1],
        "flag": True,
        "free": [None, {"deep": [1]}],
    }
    found = read_record(put(tmp_path / "x.json", GOOD | more), Whole)
    assert found == Whole(
        ("x", "y"),
        2,
        Part("p"),
        2.0,
        1,
        3,
        [Part("q", 4)],
        {"k": 7},
        {"a": "b"},
        ("z", 1.0),
        True,
        [None, {"deep": [1]}],
    )
    assert type(found.rate) is float
    assert type(found.components) is int  # 1 component is not the share 1.0
    assert read_record(put(tmp_path / "x.json", GOOD), Whole) == Whole(("x", "y"), 2, Part("p"))


@table(
    ("change", "message"),
    [
        ({"names": "xy"}, r"x\.json', field names: wanted a list, each text, got 'xy'\. It may be"),
        ({"names": ["x", 1]}, r"field names\[1\]: wanted text, got 1\."),
        ({"names": [["x"], "y"]}, r"field names\[0\]: wanted text, got list of 1"),
        ({"count": 2.0}, r"field count: wanted a whole number, got 2\.0"),
        ({"count": True}, "field count: wanted a whole number, got True"),
        ({"count": "2"}, "field count: wanted a whole number, got '2'"),
        ({"count": -1}, "field count: wanted a number from 0 to 1000, got -1"),
        ({"count": 10**18}, "field count: wanted a number from 0 to 1000, got 1000000000000000000"),
        ({"count": 3}, r"x\.json': wanted 3 names, got 2\. It may be"),
        ({"part": {}}, r"field part\.name: wanted text, got none"),
        ({"part": None}, "field part: wanted fields by name, got None"),
        ({"part": {"name": "p", "size": 1.5}}, r"part\.size: wanted a whole number or null, got 1"),
        ({"part": {"name": "p", "colour": 1}}, "part: wanted no other fields than name, size, got"),
        ({"colour": 1}, r"x\.json': wanted no other fields than names, .* got 'colour'"),
        ({"rate": "1"}, "field rate: wanted a finite number, got '1'"),
        ({"rate": False}, "field rate: wanted a finite number, got False"),
        ({"kind": "c"}, "field kind: wanted 'a' or 'b' or 1, got 'c'"),
        ({"kind": True}, "field kind: wanted 'a' or 'b' or 1, got True"),
        (
            {"components": "all"},
            "components: wanted a whole number or a finite number or nu",
        ),
        ({"parts": [{"name": "q"}, {"name": 3}]}, r"field parts\[1\]\.name: wanted text, got 3"),
        ({"sizes": {"k": "7"}}, r"field sizes\.k: wanted a whole number, got '7'"),
        ({"sizes": []}, "field sizes: wanted fields by name, each a whole number, got list of 0"),
        ({"pair": ["z"]}, "field pair: wanted a list of 2: text, a finite number or null, got"),
        ({"pair": ["z", "1"]}, r"field pair\[1\]: wanted a finite number, got '1'"),
        ({"flag": 1}, "field flag: wanted true or false, got 1"),
    ],
)
def test_a_field_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ResiDualError, match=message):
        read_record(put(tmp_path / "x.json", GOOD | change), Whole)


@table("value", [[], "text", 3, None, True, [GOOD]])
def test_another_kind_of_json_is_refused(tmp_path: Path, value: object) -> None:
    path = put(tmp_path / "x.json", json.dumps(value))
    with pytest.raises(ResiDualError, match=r"x\.json': wanted fields by name, got"):
        read_record(path, Whole)
    with pytest.raises(ResiDualError, match=r"x\.json' with fields by name, got"):
        read_object(path)
    assert read_json(path) == value


def test_a_missing_field_is_named_and_unknown_ones_may_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match=r"field count: wanted a whole number, got none"):
        read_record(put(tmp_path / "x.json", {"names": []}), Whole)
    path = put(tmp_path / "x.json", GOOD | {"colour": 1})
    assert read_record(path, Whole, unknown="ignore").count == 2


@table(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a":' * 100_000, "nested deeper than 64"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 900 + "]" * 900, "nested deeper than 64"),  # which json itself can read
        ("1" * 5_000, "a whole number of 5000 digits"),
        ('{"a": -' + "1" * 30 + "}", "a whole number of 31 digits"),
        ('{"a": NaN}', "x.json' holds NaN, which is no number"),
        ("[-Infinity]", "holds -Infinity, which is no number"),
        ('{"a": 1, "b": 2, "a": 3}', "holds the field 'a' twice"),
        ('{"a": {"b": 1, "b": 1}}', "holds the field 'b' twice"),
        ("", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
    ],
)
def test_json_that_nobody_writes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        read_json(put(tmp_path / "x.json", text))


def test_a_number_beyond_a_double_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match="field rate: wanted a finite number, got inf"):
        read_record(put(tmp_path / "x.json", json.dumps(GOOD)[:-1] + ', "rate": 1e999}'), Whole)


def test_bytes_that_are_no_text_are_refused_and_a_mark_of_their_order_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ResiDualError, match=r"x\.json' is not JSON \('utf-8' codec"):
        read_json(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_record(path, Whole).count == 2


def test_depth_and_size_that_are_allowed_are_read(tmp_path: Path) -> None:
    value = read_json(put(tmp_path / "x.json", "[" * MAX_DEPTH + "]" * MAX_DEPTH))
    assert value == json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert read_json(put(tmp_path / "x.json", "9" * 19)) == int("9" * 19)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(10**13)  # takes no room on the disk
    started = time.monotonic()
    with pytest.raises(ResiDualError, match=r"at most 16,777,216 bytes, got one of 10,000,000,0"):
        read_json(path)
    assert MAX_BYTES == 2**24
    with pytest.raises(ResiDualError, match="at most 10 bytes, got one of"):
        read_record(put(tmp_path / "y.json", GOOD), Whole, max_bytes=10)
    assert time.monotonic() - started < 5


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
def test_what_is_no_plain_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        kinds = {"pipe": "a pipe", "folder": "a directory", "zero": "a device"}
        for name, kind in (kinds | {"socket": "a socket"}).items():
            with pytest.raises(ResiDualError, match=f"{name}' as a plain file, got {kind}"):
                read_json(tmp_path / name)
    with pytest.raises(ResiDualError, match="links lead round in a circle"):
        read_json(tmp_path / "round")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ResiDualError, match=r"choose a shorter one|none is called so"):
            read_json(tmp_path / name)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    put(tmp_path / "blob", GOOD)  # as the Hub's cache has them
    (tmp_path / "x.json").symlink_to("blob")
    assert read_record(tmp_path / "x.json", Whole).count == 2


def test_messages_are_one_line_whatever_the_file_says(tmp_path: Path) -> None:
    with pytest.raises(ResiDualError) as refused:
        read_record(put(tmp_path / "x.json", GOOD | {"a\nb\x1b[2J": 1}), Whole)
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    with pytest.raises(ResiDualError) as refused:
        read_record(put(tmp_path / "x.json", GOOD | {"rate": "y" * 10**6}), Whole)
    assert len(str(refused.value)) < 1000
    assert math.isfinite(Whole(("x",), 1, Part("p")).rate)
