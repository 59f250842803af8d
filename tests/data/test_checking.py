"""Every image is looked at once, before the data are split."""

import csv
import errno
import io
import logging
import os
import re
import socket
import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from residual_peft.data import SkippedImage, load_data, write_skipped
from residual_peft.data.checking import THREADS, _examined
from residual_peft.data.provenance import image_digest
from residual_peft.errors import ResiDualError


def encoded(kind, seed=0, size=(40, 30), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def with_thumbnail(content, thumbnail):
    """A JPEG whose EXIF block holds a whole JPEG, as cameras write it."""
    block = b"Exif\0\0" + thumbnail
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def one_colour(width, height):
    """A PNG of few bytes whose pixels would need width x height x 3."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def not_numbers():
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


JPEG = encoded("JPEG")
PROGRESSIVE = encoded("JPEG", progressive=True)
PNG = encoded("PNG")
GOOD = {
    "whole": JPEG,
    "with more behind its end": JPEG + b"\0" * 500,
    "progressive": PROGRESSIVE,
    "with a thumbnail": with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8))),
    "with restart markers": encoded("JPEG", restart_marker_blocks=1),
    "with filling before markers": JPEG[:2] + b"\xff\xff" + JPEG[2:],
    "png": PNG,
    "webp": encoded("WEBP"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
}
BAD = {
    "empty": (b"", "an empty file"),
    "text": (b"no image", "not an image that PIL knows"),
    "jpeg cut": (JPEG[: len(JPEG) // 2], "cut short"),
    "progressive cut": (PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3], "cut short"),
    "jpeg of zeros from the middle": (JPEG[:700] + b"\0" * 900, "cut short"),
    "cut, thumbnail whole": (with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8)))[:-600], "cut short"),
    "only a thumbnail": (with_thumbnail(JPEG, encoded("JPEG", 1, (8, 8)))[:1100], "."),
    "png cut": (PNG[:-200], "."),
    "png with a wrong bit": (flipped(PNG, len(PNG) // 2), "checksum|broken"),
    "webp cut": (encoded("WEBP")[:300], "."),
    "tiff cut": (encoded("TIFF")[:2000], "."),
    "2.7 GB of one colour": (one_colour(30_000, 30_000), "more than 178,956,970 pixels"),
    "300 MB of one colour": (one_colour(10_000, 10_000), "10000 x 10000 pixels are more than 89,"),
    "PostScript": (encoded("EPS"), "a program that would have to be run"),
    "without pixels": (one_colour(0, 5), "."),
    "no numbers": (not_numbers(), "NaN or infinite pixels"),
}


def folder(path, count=40):
    for k, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for i in range(count):
            (path / name / f"{i:02}.png").write_bytes(encoded("PNG", 2 * i + k, (4, 4)))
    return path


@pytest.mark.parametrize("door", ["folder", "dataset"])
def test_bad_images_are_skipped_with_a_word_and_good_ones_kept(tmp_path, caplog, door):
    contents = {**GOOD, **{name: content for name, (content, _) in BAD.items()}}
    source = folder(tmp_path)
    for i, content in enumerate(contents.values()):
        (source / "cat" / f"z{i:02}.jpg").write_bytes(content)
    paths = sorted(source.rglob("*.*g"))
    if door == "dataset":
        columns = {
            "image": [*({"bytes": p.read_bytes(), "path": None} for p in paths), None],
            "label": [*(p.parent.name for p in paths), "cat"],
        }
        kinds = {"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])}
        source = Dataset.from_dict(columns, features=Features(kinds))
    caplog.set_level(logging.WARNING, "residual_peft")
    data = load_data(source, max_bad=0.3)
    skipped = {image.file: image.reason for image in data.skipped}
    first = len(GOOD) + 40  # cats without a name come after the others
    for i, (name, (_, reason)) in enumerate(BAD.items()):
        path = tmp_path / "cat" / f"z{len(GOOD) + i:02}.jpg"
        file = str(path) if door == "folder" else f"row {first + i} of the split train"
        assert re.search(reason, skipped.pop(file)), (name, data.skipped)
    assert skipped == (
        {} if door == "folder" else {f"row {len(paths)} of the split train": "an empty row"}
    )
    whole, digests = data.whole()
    assert len(whole) == len(digests) == 80 + len(GOOD)
    expected = {image_digest(content) for content in GOOD.values()}
    assert expected <= set(digests)
    assert (
        f"skipped {len(data.skipped)} of the {len(paths) + (door == 'dataset')} images"
        in caplog.text
    )
    for image in whole:
        image["image"].load()


def special_files(path):
    """Name -> why: what has the name of an image and must never be opened, or cannot be."""
    os.mkfifo(path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path / "socket.png"))
    (path / "device.png").symlink_to("/dev/zero")
    (path / "loop.png").symlink_to("loop.png")
    (path / "lost.png").symlink_to("nowhere.png")
    (path / "folder.png").mkdir()
    (path / "link.png").symlink_to("folder.png")
    with (path / "sparse.png").open("wb") as file:
        file.truncate(2**30 + 1)
    return {
        "pipe.png": "a named pipe, not a file",
        "socket.png": "a socket, not a file",
        "device.png": "a device, not a file",
        "loop.png": "a link that leads back to itself",
        "lost.png": "no such file",
        "folder.png": "a folder, not a file",
        "link.png": "a folder, not a file",
        "sparse.png": "too large: a file of 1,073,741,825 bytes, more than 1,073,741,824",
    }


@pytest.mark.parametrize("door", ["folder", "paths"])
def test_what_is_no_file_is_skipped_and_never_opened(tmp_path, monkeypatch, door):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    source = folder(tmp_path / "data", 60)
    expected = special_files(source / "cat")
    if door == "paths":
        paths = [str(p) for p in sorted(source.rglob("*.png"))]
        columns = {"image": paths, "label": [Path(p).parent.name for p in paths]}
        kinds = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
        source = Dataset.from_dict(columns, kinds)
    data = load_data(source, max_bad=0.1)
    found = {Path(image.file).name: image.reason for image in data.skipped}
    assert found == expected
    assert sum(map(len, data.splits.values())) == 120


def test_files_without_rights_and_folders_without_rights(tmp_path, monkeypatch):
    source = folder(tmp_path / "data")
    real_open, real_scan = open, os.scandir

    def refusing(path, *rest, **more):
        if str(path).endswith("cat/03.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, *rest, **more)

    def scanning(path):
        if str(path).endswith("cat/locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scan(path)

    (source / "cat" / "locked").mkdir()
    monkeypatch.setattr("builtins.open", refusing)  # who runs as root may read everything
    monkeypatch.setattr("os.scandir", scanning)
    data = load_data(source)
    assert data.skipped == (
        SkippedImage(f"{source}/cat/locked", "a folder: Permission denied"),
        SkippedImage(f"{source}/cat/03.png", "no right to read it"),
    )


def test_names_that_are_not_utf8_are_skipped_and_escape_codes_written_out(tmp_path, caplog):
    source = folder(tmp_path)
    for name in (b"\xff\xfe.png", b"bad\x1b[2J\nname.png"):
        with open(os.path.join(os.fsencode(source / "cat"), name), "wb") as file:
            file.write(encoded("PNG") if b"\xff" in name else b"no image")
    with pytest.raises(ResiDualError, match="its name, or that of its folder, is not UTF-8"):
        load_data(source, strict=True)
    data = load_data(source)
    assert [image.reason for image in data.skipped] == [
        "its name, or that of its folder, is not UTF-8; rename it",
        "not an image that PIL knows",
    ]
    files = [image.file for image in data.skipped]
    assert [os.path.exists(file) for file in files] == [True, True]
    assert all(image.title.isprintable() for image in data.skipped)
    assert data.skipped[1].title == f"'{source}" + r"/cat/bad\x1b[2J\nname.png'"
    assert "\x1b" not in caplog.text
    assert r"bad\x1b[2J\nname.png" in caplog.text
    write_skipped(tmp_path / "skipped.csv", data.skipped)
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows_ = list(csv.reader(file))
    assert rows_[0] == ["file", "reason"]
    assert rows_[1][0] == f"{source}" + r"/cat/\udcff\udcfe.png"  # no text can hold it
    assert rows_[2] == [files[1], "not an image that PIL knows"]


def test_the_list_of_skipped_images_names_paths_that_can_be_used(tmp_path, monkeypatch):
    folder(tmp_path / "Meine Fotos")
    bad = tmp_path / "Meine Fotos" / "cat" / "Rote Äpfel, 'reif'.jpg"
    bad.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    data = load_data("Meine Fotos")
    write_skipped(tmp_path / "skipped.csv", data.skipped)
    monkeypatch.chdir("/")
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [{"file": str(bad), "reason": "an empty file"}]
    assert Path(found[0]["file"]).is_file()
    assert str(data.skipped[0]) == f"'{bad}' (an empty file)"
    assert str(SkippedImage("row 3 of the split train", "empty")) == (
        "row 3 of the split train (empty)"
    )


def test_a_folder_that_is_not_utf8_is_refused(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff")
    source = folder(Path(os.fsdecode(path)))
    with pytest.raises(ResiDualError, match=r"udcff' is not UTF-8"):
        load_data(source)


def test_what_is_left_is_as_if_the_bad_images_had_never_been_there(tmp_path):
    for name in ("a", "b"):
        folder(tmp_path / name)
    for path in ("cat/07.png", "cat/20.png", "dog/00.png"):
        (tmp_path / "a" / path).write_bytes(b"no image")
        (tmp_path / "b" / path).unlink()
    found, expected = (load_data(tmp_path / name) for name in ("a", "b"))
    assert found.split == expected.split
    for split, digests in expected.digests.items():
        assert sorted(found.digests[split]) == sorted(digests)
        assert found[split][:]["label"] == expected[split][:]["label"]
    assert len(found.skipped) == 3


def test_three_and_a_share_may_be_bad(tmp_path):
    source = folder(tmp_path, 50)
    bad = [source / "cat" / f"{i:02}.png" for i in range(6)]
    for path in bad[:3]:
        path.write_bytes(b"")
    assert len(load_data(source, max_bad=0).skipped) == 3
    for path in bad[3:]:
        path.write_bytes(b"")
    message = (
        r"6 of the 100 images of .* cannot be read, and max_bad=0.05 allows 5: '.*00.png' \(an e"
    )
    with pytest.raises(ResiDualError, match=message):
        load_data(source)
    assert len(load_data(source, max_bad=0.06).skipped) == 6
    with pytest.raises(ResiDualError, match=r"could not read '.*00.png' \(an empty file\); repair"):
        load_data(source, strict=True)
    for name in ("cat", "dog"):
        for i in range(20):
            (source / name / f"{i:02}.png").write_bytes(b"")
    for i in range(20, 38):
        (source / "cat" / f"{i:02}.png").write_bytes(b"")
    assert len(load_data(source, max_bad=0.58).skipped) == 58  # 0.58 * 100 is 57.99999999999999
    for share in (-0.1, 1.1, True, float("nan")):
        with pytest.raises(ResiDualError, match="max_bad: wanted a share"):
            load_data(source, max_bad=share)


def test_a_class_without_any_readable_image_is_named(tmp_path):
    source = folder(tmp_path)
    (source / "owl").mkdir()
    (source / "owl" / "0.png").write_bytes(b"no image")
    message = (
        r"no image of 1 of the 3 classes .* can be read \('owl'\); the first .*owl/0.png' \(not"
    )
    with pytest.raises(ResiDualError, match=message):
        load_data(source)


def test_progress_counts_every_image(tmp_path):
    source, counts = folder(tmp_path), []
    (source / "cat" / "00.png").write_bytes(b"")
    load_data(source, progress=counts.append)
    assert counts == [1] * 80


def test_links_to_folders_are_followed_but_not_round_in_circles(tmp_path):
    folder(tmp_path / "elsewhere")
    (tmp_path / "data" / "owl").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "dog" / "itself").symlink_to("itself")
    data = load_data(tmp_path / "data")
    assert data.class_names == ("cat", "dog")
    assert len(data.whole()[0]) == 80
    assert not data.skipped


def test_no_more_images_are_in_memory_than_there_are_threads(tmp_path):
    source = folder(tmp_path, 3)
    large = JPEG + bytes(2**20)
    for i in range(100):
        (source / "cat" / f"large{i}.jpg").write_bytes(large + bytes([i]))
    tracemalloc.start()
    try:
        data = load_data(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.whole()[0]) == 106
    assert peak < 40 * 2**20


def test_few_images_are_under_way_however_many_there_are(monkeypatch):
    started = []

    def look(content, path):
        started.append(path)
        return "0" * 32, ""

    monkeypatch.setattr("residual_peft.data.checking._look", look)
    source = Dataset.from_dict({"image": [str(i) for i in range(500)]})
    found = _examined({"train": source.cast_column("image", ImageFeature())})
    assert next(found)[:3] == ("train", 0, "0")
    assert 1 <= len(started) <= 2 * THREADS + 1
    assert len(list(found)) == 499


def test_an_interrupt_ends_the_look_at_once(tmp_path):
    class Stop(BaseException):
        pass

    def stop(count):
        raise Stop

    with pytest.raises(Stop):
        load_data(folder(tmp_path), progress=stop)
    assert not [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]
