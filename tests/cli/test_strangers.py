"""What lies in strangers' folders, through `look`, `fit` and `predict`: each file counted, or told.

All of it was met in the clip art and Tux Paint's stamps of Debian (`benchmarks/strangers.py`), or
is what cameras, phones and other systems leave.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.commands import stop

Draw = Callable[[], bytes]
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def picture(seed: int, disc: bool = True, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """A disc or a box, somewhere, on some colour."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(draw.integers(0, 256, 3).tolist()))
    left, top, right, bottom = (draw.integers(0, 8, 4) + np.array([4, 4, 22, 22])).tolist()
    shape = ImageDraw.Draw(image).ellipse if disc else ImageDraw.Draw(image).rectangle
    shape((left, top, right, bottom), fill=tuple(draw.integers(0, 256, 3).tolist()))
    return image


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sum_

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def see_through() -> bytes:
    image = picture(1).convert("RGBA")
    image.putalpha(100)
    return stored(image)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(picture(5, size=(60, 30)), "JPEG", exif=exif)


def moving() -> bytes:
    others = [picture(seed) for seed in (11, 12)]
    return stored(picture(10), "GIF", save_all=True, append_images=others)


def sixteen_bits() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 2**16, (40, 40), np.uint16)
    return stored(Image.fromarray(pixels))


READ: dict[str, Draw] = {
    "alpha.png": see_through,
    "grey and alpha.png": lambda: stored(picture(2).convert("LA")),
    "palette, one colour clear.png": lambda: stored(picture(3).quantize(16), transparency=0),
    "16 bits.png": sixteen_bits,
    "cmyk.jpg": lambda: stored(picture(4).convert("CMYK"), "JPEG"),
    "turned by EXIF.JPG": turned,
    "moving.gif": moving,
    "a name  with (brackets) [1], 100 % {}.png": lambda: stored(picture(6)),
    "Scheibe \u00fcn\u00efc\u00f6d\u00e9 \u5186\u76e4 \U0001f7e0.png": lambda: stored(picture(7)),
    "a/b/c/d/e/f/g/h/i/j/deep.png": lambda: stored(picture(8)),
}
UNREAD: dict[str, tuple[Draw, str]] = {
    "623 million pixels.png": (lambda: bomb(24_960), "more than 178,956,970 pixels"),
    "100 million.png": (lambda: bomb(10_000), "10000 x 10000 pixels are more than 89,478,485"),
    "empty.png": (lambda: b"", "an empty file"),
    "words.jpeg": (lambda: b"a disc", "not an image that PIL knows"),
}
NONE: dict[str, Draw] = {  # beside the images, and no image
    "sound.ogg": lambda: b"OggS",
    "alpha.txt": lambda: b"a disc, see-through",
    "alpha.svg": lambda: b"<svg/>",
    "alone.svg": lambda: b"<svg/>",
    "phone.HEIC": lambda: b"\0\0\0\x18ftypheic",
    ".hidden.png": lambda: stored(picture(9)),
    "._alpha.png": lambda: b"\0\5\x16\7",
    ".DS_Store": lambda: b"\0\0\0\1Bud1",
    "Thumbs.db": lambda: b"\xd0\xcf",
}
LOOP = "a link that leads back to itself"
PLAIN = 15  # images of each class that are as images should be
LEFT_OUT = [
    "'drawings' (no images in it)",
    "3 .svg files (no kind that PIL reads; 2 without an image of that name beside it)",
    "1 .heic file (no kind that PIL reads, as phones write them: save them as JPEG)",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stranger") / "photos"
    drawn = {f"{kind}/{i}.png": stored(picture(100 * disc + i, disc))
             for kind, disc in (("disc", True), ("box", False)) for i in range(PLAIN)}  # fmt: skip
    drawn |= {f"disc/{name}": draw() for name, draw in (READ | NONE).items()}
    drawn |= {f"disc/{name}": draw() for name, (draw, _) in UNREAD.items()}
    drawn |= {"drawings/1.svg": b"<svg/>", ".git/x.png": drawn["box/0.png"]}
    drawn |= {f"disc/{NOT_UTF8}": stored(picture(20))}
    for name, content in drawn.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "disc" / "up").symlink_to("..", target_is_directory=True)
    (root / "disc" / "round.png").symlink_to("round.png")
    return root


def reasons(disc: Path) -> dict[str, str]:
    """What cannot be read by whoever makes a data set of it."""
    found = {str(disc / name): reason for name, (_, reason) in UNREAD.items()}
    return found | {str(disc / "round.png"): LOOP}


NAME = "its name, or that of its folder, is not UTF-8; rename it"


def test_a_look_counts_every_file(folder: Path, monkeypatch, capsys) -> None:
    assert stop(monkeypatch, "look", str(folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == {"box": PLAIN, "disc": PLAIN + len(READ)}
    assert found["formats"] == {"PNG": 2 * PLAIN + len(READ) - 3, "JPEG": 2, "GIF": 1}
    skipped = {each["file"]: each["reason"] for each in found["skipped"]}
    assert skipped == reasons(folder / "disc") | {str(folder / "disc" / NOT_UTF8): NAME}
    assert found["left_out"] == LEFT_OUT
    assert found["copies"] == []
    assert stop(monkeypatch, "look", str(folder)) == 0
    said = capsys.readouterr().out
    assert f"left out: {', '.join(LEFT_OUT)}" in said
    assert "skipped 1 file, an empty file: 'disc/empty.png'" in said
    assert "'disc/caf\\udce9.png'" in said


def test_a_fit_and_its_predictions_tell_the_same(folder, tmp_path, monkeypatch, capsys) -> None:
    given = ("fit", "--data", str(folder), "--out", str(tmp_path / "a"), "--json")
    given += ("--method", "ridge-embedding", "--no-report", "--num-workers", "0")
    assert stop(monkeypatch, *given) == 2  # six are too many to be a slip
    assert "--max-bad" in capsys.readouterr().err.splitlines()[-1]
    assert stop(monkeypatch, *given, "--max-bad", "0.2") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert sum(summary["splits"].values()) == 2 * PLAIN + len(READ)
    skipped = {each["file"]: each["reason"] for each in summary["skipped"]}
    assert skipped == reasons(folder / "disc") | {str(folder / "disc" / NOT_UTF8): NAME}
    assert f"left out {', '.join(LEFT_OUT)}" in captured.err
    assert "Traceback" not in captured.err

    assert stop(monkeypatch, "predict", str(tmp_path / "a"), str(folder), "--json") == 0
    captured = capsys.readouterr()
    answers = {each["file"]: each for each in map(json.loads, captured.out.splitlines())}
    unread = {file: each["error"] for file, each in answers.items() if "error" in each}
    assert unread == reasons(folder / "disc")
    read = {os.path.relpath(file, folder) for file in answers.keys() - unread.keys()}
    # the name that datasets could not hold is no matter here
    plain = {f"{kind}/{i}.png" for kind in ("disc", "box") for i in range(PLAIN)}
    assert read == plain | {f"disc/{name}" for name in (*READ, NOT_UTF8)}
    assert "left out 3 .svg files" in captured.err
    assert captured.err.splitlines()[-1] == "41 images classified, 5 files not read."


def test_a_class_that_cannot_be_read_is_shown_by_look_and_stops_a_fit(
    folder, tmp_path, monkeypatch, capsys
) -> None:
    for name in ("box", "disc", "torn"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            torn = b"" if name == "torn" else stored(picture(i, name == "disc"))
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(torn)
    (tmp_path / "photos" / "box" / "also.png").write_text("no image")
    assert stop(monkeypatch, "look", str(tmp_path / "photos")) == 0
    said = capsys.readouterr().out
    assert "no image of 'torn' can be read: repair them or leave the class out before a fit" in said
    assert "classes: box 3, disc 3, torn 0" in said
    given = ("--data", str(tmp_path / "photos"), "--out", str(tmp_path / "a"), "--max-bad", "1")
    assert stop(monkeypatch, "fit", *given) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no image of 1 of the 3 classes of" in last
    assert f"'{tmp_path / 'photos' / 'torn' / '0.png'}' (an empty file)" in last


def test_phones_write_what_predict_cannot_read_and_it_says_so(
    folder, saved_adapter, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert stop(monkeypatch, "predict", str(saved_adapter), str(tmp_path)) == 2
    said = "a folder without images, not 1 .heic, as phones write them: save them as JPEG"
    assert said in capsys.readouterr().out
