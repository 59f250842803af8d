"""Zips and tars: unpacked once, and nothing of a stranger's archive may reach beyond its folder."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from residual_peft.data import archives, load_data
from residual_peft.data.archives import is_archive, unpacked
from residual_peft.errors import ResiDualError
from tests.pairs import table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def photos(tmp_path: Path, draw_digits) -> dict[str, bytes]:
    draw_digits(tmp_path / "photos", by_class=True)
    return files_below(tmp_path / "photos")


PACKED: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "a.zip": zipped,
    "a.TAR.GZ": tarred,
    "a.tar": lambda path, files: tarred(path, files, "w"),
    "a.tar.xz": lambda path, files: tarred(path, files, "w:xz"),
    "a.tbz2": lambda path, files: tarred(path, files, "w:bz2"),
}


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_is_what_is_in_it(name: str, tmp_path: Path, photos) -> None:
    path = PACKED[name](tmp_path / name, photos)
    assert is_archive(path)
    data, by_folder = load_data(path), load_data(tmp_path / "photos")
    assert data.source == str(path)
    assert data.split == by_folder.split
    assert data.digests == by_folder.digests


def test_folders_around_it_tables_and_what_is_left_out(tmp_path: Path, photos, caplog) -> None:
    flat = {f"My photos/v1/{Path(name).name}": content for name, content in photos.items()}
    rows = [f"{Path(name).name},{Path(name).parent.name}" for name in photos]
    flat["My photos/v1/labels.csv"] = "\n".join(["file_name,label", *rows]).encode()
    flat |= {
        "My photos/v1/classes.csv": b"name,words\none,the number one\n",
        "My photos/v1/run.sh": b"#!/bin/sh",
        "__MACOSX/My photos/._a.png": b"x",
        "My photos/v1/.DS_Store": b"x",
    }
    with caplog.at_level("INFO"):
        data = load_data(zipped(tmp_path / "a.zip", flat))
    assert data.class_names == ("the number one", "two", "zero")
    assert "3 files of 'a.zip' left out: no images or tables" in caplog.text
    names = set(files_below(unpacked(tmp_path / "a.zip")))
    assert not [name for name in names if name.endswith((".sh", "Store")) or "MACOSX" in name]


def test_names_in_utf8_of_a_zip_that_does_not_say_so(tmp_path: Path) -> None:
    """As Linux's `zip` and macOS write them; and one in code page 437, which is no UTF-8."""
    files = {"V__gel/1.png": b"1", "Caf_/1.png": b"2"}
    path = zipped(tmp_path / "a.zip", files)
    content = path.read_bytes().replace(b"V__gel", "V\xf6gel".encode())
    path.write_bytes(content.replace(b"Caf_", b"Caf\x82"))
    found = files_below(unpacked(path))
    assert found == {"V\xf6gel/1.png": b"1", "Caf\xe9/1.png": b"2"}


def test_it_is_unpacked_once_and_again_when_it_changes(tmp_path: Path, photos, monkeypatch) -> None:
    path = zipped(tmp_path / "a.zip", photos)
    first = unpacked(path)
    monkeypatch.setattr(archives, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert unpacked(path) == first
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    some = dict(list(photos.items())[:5])
    second = unpacked(zipped(path, some))
    assert second != first
    assert files_below(second) == some


def link_in_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")


def link_in_tar(path: Path, kind: bytes = tarfile.SYMTYPE) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)


def encrypted(path: Path) -> None:
    content = bytearray(zipped(path, {"a.png": b"x" * 50}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def lying(path: Path) -> None:
    """The header says fewer bytes than there are."""
    zipped(path, {"a.png": bytes(2**22)})
    content = path.read_bytes()
    path.write_bytes(content.replace((2**22).to_bytes(4, "little"), (9).to_bytes(4, "little")))


def cut(path: Path) -> None:
    zipped(path, {"a.png": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:3000])


@table(
    ("name", "make", "message"),
    [
        ("a.zip", lambda p: zipped(p, {"../../a.png": b"x"}), "which leads out of its folder"),
        ("a.zip", lambda p: zipped(p, {"/tmp/a.png": b"x"}), "which leads out of its folder"),
        ("a.zip", lambda p: zipped(p, {"..\\a.png": b"x"}), "which leads out of its folder"),
        ("a.zip", lambda p: zipped(p, {"C:\\a.png": b"x"}), "which leads out of its folder"),
        ("a.tar", lambda p: tarred(p, {"x/../../a.png": b"x"}), "which leads out of its folder"),
        ("a.zip", link_in_zip, "holds the link 'a.png', which may lead anywhere"),
        ("a.tar", link_in_tar, "holds the link 'a.png', which may lead anywhere"),
        ("a.tar", lambda p: link_in_tar(p, tarfile.LNKTYPE), "holds the link 'a.png'"),
        ("a.zip", encrypted, "encrypted"),
        ("a.zip", lying, "could not unpack"),
        ("a.zip", cut, "could not unpack"),
        ("a.zip", lambda p: p.write_bytes(b"no archive"), "could not unpack"),
        ("a.tar.gz", lambda p: p.write_bytes(b"no archive"), "could not unpack"),
        ("a.tgz", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(40)), "could not unpack"),
        ("a.zip", lambda p: zipped(p, {"a.png": b"1", "a.png/b.png": b"2"}), "as a file and a"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing(name, make, message, tmp_path, cache, monkeypatch) -> None:
    monkeypatch.setattr(archives, "LEAST_ALLOWED", 2**20)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    make(tmp_path / name)
    with pytest.raises(ResiDualError) as raised:
        load_data(tmp_path / name)
    assert message in str(raised.value)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - before == {tmp_path / name}


def test_a_bomb_is_stopped_before_it_fills_the_disk(tmp_path: Path, monkeypatch, cache) -> None:
    path = zipped(tmp_path / "a.zip", {"a.png": b"", "b.png": bytes(2**22)})
    monkeypatch.setattr(archives, "LEAST_ALLOWED", 2**20)
    with pytest.raises(ResiDualError, match="unpacks to more than 1,048,576 bytes, 100 times"):
        unpacked(path)
    monkeypatch.setattr(archives, "LEAST_ALLOWED", 2**30)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ResiDualError, match="more than the 1,000 bytes that are free"):
        unpacked(path)
    monkeypatch.setattr(archives, "MOST_FILES", 1)
    with pytest.raises(ResiDualError, match="holds more than 1 files"):
        unpacked(path)
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_devices_in_a_tar_are_left_out_and_one_cut_short_is_told(tmp_path: Path, photos) -> None:
    path = tmp_path / "a.tar"
    tarred(path, photos, "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("zero/pipe.png")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    assert files_below(unpacked(path)) == photos
    whole = path.read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for place in (headers[-1], headers[-1] + 100):  # where tarfile takes what there is for all
        path.write_bytes(whole[:place])
        with pytest.raises(ResiDualError, match="no end of the archive"):
            unpacked(path)
