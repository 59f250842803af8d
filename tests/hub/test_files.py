"""Files appear whole or not at all; what cannot be read is named."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from residual_peft.errors import ResiDualError
from residual_peft.hub.files import (
    atomic_directory,
    atomic_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from tests.pairs import table

TENSORS = {"a": torch.randn(3, 4).T, "b": torch.tensor([1, 2])}


def test_a_file_takes_its_place_when_the_block_has_succeeded(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "x.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename, not a copy across disks
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["x.txt"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_directory_gets_all_its_files_or_none(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept.txt").write_text("kept")
    (target / "x.txt").write_text("old")
    with pytest.raises(KeyError), atomic_directory(target) as temporary:  # noqa: PT012
        (temporary / "x.txt").write_text("half")
        raise KeyError
    assert (target / "x.txt").read_text() == "old"
    with atomic_directory(target) as temporary:
        (temporary / "deeper").mkdir()
        (temporary / "deeper" / "y.txt").write_text("y")
        (temporary / "x.txt").write_text("new")
        assert (target / "x.txt").read_text() == "old"
    found = {str(p.relative_to(target)): p.read_text() for p in target.rglob("*") if p.is_file()}
    assert found == {"kept.txt": "kept", "x.txt": "new", "deeper/y.txt": "y"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_new_directory_is_not_made_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_directory(tmp_path / "out"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    message = "wanted a directory to write to, got the file '.*x'; name another"
    with pytest.raises(ResiDualError, match=message), atomic_directory(tmp_path / "x"):
        pass


def test_files_have_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "x.json", 1)
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "y").touch(0o600)
    finally:
        os.umask(before)
    for path in (tmp_path / "x.json", tmp_path / "out" / "y"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_and_tensors_come_back(tmp_path: Path) -> None:
    value = {"class_names": ["Äpfel", "pears"], "n": [1, 2.5, None]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == json.loads((tmp_path / "x.json").read_text()) == value
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"made": "here"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"made": "here"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_missing_file_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(ResiDualError, match=r"wanted the file '.*absent', which is missing"):
        read(tmp_path / "absent")


@table("content", [b"", b'{"a": [1, 2', b"\xff\xfe\x00 no text"])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ResiDualError, match=r"x\.json' is not JSON \(.*\); it may have been cut"):
        read_json(tmp_path / "x.json")


@table("length", [0, 5, 60, -1])
def test_tensors_cut_short_are_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ResiDualError, match=r"x\.safetensors' is not a whole safetensors file"):
        read_tensors(path)
    for dtype, said in ((torch.float8_e4m3fn, "F8_E4M3"), (torch.complex64, "C64")):
        write_tensors(path, TENSORS | {"c": torch.ones(2).to(dtype)})
        with pytest.raises(ResiDualError, match=rf"'c' in '.*x\.safetensors' .*, got {said}:"):
            read_tensors(path)
