"""What may be named as images to classify, and the files that it stands for."""

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from residual_peft.data.images import to_rgb
from residual_peft.data.inputs import files_in, images_of
from residual_peft.data.skipped import SkippedImage
from residual_peft.errors import ResiDualError
from tests.pairs import table


def draw(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (value, 0, 0)).save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for value, name in enumerate(
        ("a.png", "deep/er/b.jpg", "c [1].png", ".hidden.png", "deep/d.png")
    ):
        draw(tmp_path / "photos" / name, value)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVERY = ["photos/a.png", "photos/c [1].png", "photos/deep/d.png", "photos/deep/er/b.jpg"]


@table(
    ("name", "expected"),
    [
        ("photos", EVERY),
        ("photos/", EVERY),
        ("photos/a.png", EVERY[:1]),
        ("photos/*.png", EVERY[:2]),
        ("photos/**/*.???", [*EVERY, "photos/notes.txt"]),
        ("photos/**", [*EVERY, "photos/notes.txt"]),
        ("ph*", EVERY),  # as a shell would give the folder
        ("photos/c [1].png", EVERY[1:2]),  # it is there: no pattern
        ("nothing.png", ["nothing.png"]),  # whoever reads it says so
        ("a\0b*.png", [SkippedImage("a\0b*.png", "no file is called so")]),
        ("*.gif", [SkippedImage("*.gif", "no file is called so")]),
    ],
)
def test_a_name_stands_for_files(folder: Path, name: str, expected: list[object]) -> None:
    assert sorted(map(str, files_in([name]))) == sorted(map(str, expected))


def test_folders_that_hold_nothing_say_why(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert list(files_in(["empty"])) == [SkippedImage("empty", "a folder without images")]
    os.makedirs(os.fsencode(folder / "odd"))
    Path(os.fsdecode(b"odd/\xff.png")).write_bytes(draw(folder / "a.png"))
    odd = os.fsdecode(b"odd/\xff.png")
    assert list(files_in(["odd"])) == [odd]  # datasets could not hold that name; here it is read
    assert to_rgb(odd).size == (8, 6)


def test_a_folder_within_can_be_left_out(folder: Path) -> None:
    kept = ["photos/a.png", "photos/c [1].png"]
    assert list(files_in(["photos"], but="photos/deep")) == kept
    (folder / "link").symlink_to(folder / "photos" / "deep")
    assert list(files_in(["photos"], but="link")) == kept
    (nothing,) = files_in(["photos"], but="photos")
    assert nothing.reason == "all its images are where copies go: those are not read"


def test_names_may_come_one_by_one(folder: Path) -> None:
    asked: list[str] = []

    def names():
        for name in ("photos/a.png", "photos/deep"):
            asked.append(name)
            yield name

    found = files_in(names())
    assert next(found) == "photos/a.png"
    assert asked == ["photos/a.png"]


def values(items) -> list[int]:
    return [to_rgb(item).getpixel((0, 0))[0] for item in items]


def test_one_image_in_any_form_is_one(folder: Path) -> None:
    content = draw(folder / "one.png", 77)
    image = Image.open(folder / "one.png")
    for given in (
        "one.png", folder / "one.png", content, bytearray(content), memoryview(content),
        image, np.asarray(image), {"bytes": content, "path": None},
    ):  # fmt: skip
        items, single = images_of(given)
        assert single
        assert values(items) == [77]
        items, single = images_of([given])
        assert not single
        assert values(items) == [77]
    assert images_of(io.BytesIO(content)) == ([{"bytes": content, "path": None}], True)
    assert images_of([io.BytesIO(content)]) == ([{"bytes": content, "path": None}], False)
    with open(folder / "one.png", "rb") as file:
        assert values(images_of(file)[0]) == [77]


def test_folders_patterns_and_datasets_are_many(folder: Path) -> None:
    draw(folder / "few" / "x.png", 5)
    for given in ("few", Path("few"), "few/*", ["few"]):
        assert images_of(given) == (["few/x.png"], False)
    assert images_of(["few", "photos/a.png"]) == (["few/x.png", "photos/a.png"], False)
    features = datasets.Features({"picture": datasets.Image(), "n": datasets.Value("int64")})
    rows = {"picture": ["few/x.png", "photos/deep/d.png"], "n": [1, 2]}
    items, single = images_of(datasets.Dataset.from_dict(rows, features=features))
    assert not single
    assert len(items) == 2
    assert values(items[0:2]) == [5, 4]
    assert values([items[1]]) == [4]


@table(
    ("given", "message"),
    [
        ("*.gif", "wanted images, got '*.gif' (no file is called so)."),
        (["empty"], "wanted images, got 'empty' (a folder without images)."),
        (io.StringIO("text"), "open it with mode 'rb'"),
        (datasets.Dataset.from_dict({"n": [1]}), "the dataset has no image column among n"),
    ],
)
def test_what_is_no_image_says_so(folder: Path, given: object, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ResiDualError) as raised:
        images_of(given)
    assert message in str(raised.value)
