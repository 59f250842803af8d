"""What data are like: counts, sizes, kinds of files, copies where they do harm."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from residual_peft.data import load_data
from residual_peft.data.survey import Survey, groups_of, survey


def draw(path: Path, seed: int, size: tuple[int, int] = (9, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def look(root: Path, **options) -> Survey:
    return survey(load_data(root, validation=0, test=0, max_bad=1, **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cat 5, dog 3, cow 1 in train and cat 1, dog 1, cow 1 in test; copies of two kinds."""
    root = tmp_path / "photos"
    for number in range(5):
        draw(root / "train" / "cat" / f"{number}.png", number, (10 + number, 20))
    for number in range(5, 7):
        draw(root / "train" / "dog" / f"{number}.jpg", number, (100, 50))
    draw(root / "train" / "cow" / "7.png", 7, (300, 200))
    draw(root / "test" / "cow" / "8.png", 8)
    (root / "test" / "cat").mkdir()
    (root / "test" / "dog").mkdir()
    (root / "test" / "cat" / "again.png").write_bytes((root / "train/cat/0.png").read_bytes())
    (root / "test" / "dog" / "other.png").write_bytes((root / "train/cat/1.png").read_bytes())
    (root / "train" / "dog" / "twice.jpg").write_bytes((root / "train/dog/5.jpg").read_bytes())
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"no image")
    (root / "train" / "cow" / "empty.png").write_bytes(b"")
    return root


def test_what_is_counted(folder: Path) -> None:
    found = look(folder)
    assert found.splits == {"train": 9, "test": 3}
    assert found.classes == {"cat": 6, "cow": 2, "dog": 4}
    assert found.largest_share == 6 / 12
    assert found.formats == {"PNG": 9, "JPEG": 3}
    every = [Image.open(folder / place.split / Path(place.file).relative_to(place.split)).size
             for place in found.places]  # fmt: skip
    assert found.sizes.tolist() == [list(size) for size in every]
    assert {(Path(image.file).name, image.reason) for image in found.skipped} == {
        ("bad.jpg", "not an image that PIL knows"),
        ("empty.png", "an empty file"),
    }


def test_copies_are_found_where_they_do_harm_and_where_not(folder: Path) -> None:
    found = look(folder)
    groups = {tuple(place.file for place in group.places): group for group in found.copies}
    across = ("train/cat/0.png", "test/cat/again.png")
    wrong = ("train/cat/1.png", "test/dog/other.png")
    harmless = ("train/dog/5.jpg", "train/dog/twice.jpg")
    assert set(groups) == {across, wrong, harmless}
    assert (groups[across].across_splits, groups[across].across_classes) == (True, False)
    assert (groups[wrong].across_splits, groups[wrong].across_classes) == (True, True)
    assert (groups[harmless].across_splits, groups[harmless].across_classes) == (False, False)


def test_the_lines_say_it(folder: Path) -> None:
    lines = look(folder).lines()
    assert lines[:3] == [
        "12 images of 3 classes (train 9, test 3)",
        "largest class 'cat': 6 images (50.0%); smallest 'cow': 2",
        "from 9 x 7 to 300 x 200 pixels, the median 13 x 20; PNG 9, JPEG 3",
    ]
    assert set(lines[3:5]) == {
        "skipped 1 file, not an image that PIL knows: 'train/dog/bad.jpg'",
        "skipped 1 file, an empty file: 'train/cow/empty.png'",
    }
    assert "classes: cat 6, dog 4, cow 2" in lines
    assert "copies: 3 copies of 3 images" in lines
    place = lines.index("  1 in several classes:")
    assert (
        lines[place + 1] == "    'train/cat/1.png' (train, cat), 'test/dog/other.png' (test, dog)"
    )
    assert lines[lines.index("  2 in several splits:") + 3] == "  1 in several classes:"


def test_it_is_json(folder: Path) -> None:
    read = json.loads(json.dumps(look(folder).as_dict()))
    assert read["classes"] == {"cat": 6, "cow": 2, "dog": 4}
    assert read["sizes"] == {"smallest": [9, 7], "median": [13, 20], "largest": [300, 200]}
    assert len(read["copies"]) == 3
    assert len(read["skipped"]) == 2


def test_many_classes_are_cut_short(tmp_path: Path) -> None:
    for number in range(30):
        for copy in range(1 + (number == 3)):
            draw(tmp_path / f"class{number:02}" / f"{copy}.png", 2 * number + copy)
    found = look(tmp_path)
    (line,) = [line for line in found.lines() if line.startswith("classes: ")]
    assert line.startswith("classes: class03 2, class00 1, ")
    assert line.count("class") == 1 + 15
    assert "all 9 x 7 pixels; PNG 31" in found.lines()
    assert "copies: none" in found.lines()


def test_images_without_a_path_and_with_several_labels(tmp_path: Path) -> None:
    content = draw(tmp_path / "a.png", 0).read_bytes()
    rows = {
        "image": [{"bytes": content, "path": None}] * 2
        + [{"bytes": draw(tmp_path / f"{n}.png", n).read_bytes(), "path": None} for n in (1, 2)],
        "label": [["cat", "dog"], [], ["dog"], ["cat"]],
    }
    kind = {"image": datasets.Image(), "label": datasets.List(datasets.Value("string"))}
    found = look(Dataset.from_dict(rows, features=datasets.Features(kind)))
    assert found.multi_label
    assert found.classes == {"cat": 2, "dog": 2}
    (group,) = found.copies
    assert group.across_classes
    assert str(group) == (
        "'row 0 of the split train' (train, cat + dog), "
        "'row 1 of the split train' (train, no class)"
    )


def test_splits_that_were_cut_count_as_what_they_came_from(tmp_path: Path) -> None:
    for number in range(40):  # the last four are copies of the first
        draw(tmp_path / "ab"[number % 2] / f"{number}.png", number % 36)
    data = load_data(tmp_path, validation=0.2, test=0.2)
    assert set(data.splits) == {"train", "validation", "test"}
    found = survey(data)
    assert found.splits == {"train": 40}
    assert not any(group.across_splits or group.across_classes for group in found.copies)
    assert len(found.copies) == 4


def test_files_that_go_meanwhile_are_no_end(folder: Path) -> None:
    data = load_data(folder, validation=0, test=0, max_bad=1)
    (folder / "train" / "cow" / "7.png").unlink()
    found = survey(data)
    assert found.formats == {"PNG": 8, "JPEG": 3, "unknown": 1}
    assert found.sizes.shape == (11, 2)
    assert found.images == 12
    for path in folder.rglob("*.*g"):
        path.unlink()
    gone = survey(data)
    assert gone.summary()[2] == "no sizes: the files cannot be read any more"
    assert gone.as_dict()["sizes"] == {}


def test_groups_are_those_that_share_a_mark(folder: Path) -> None:
    places = look(folder).places
    marks = [number % 5 for number in range(len(places))]
    slow = [[p for p, m in zip(places, marks, strict=True) if m == mark] for mark in range(5)]
    assert [list(group.places) for group in groups_of(marks, places)] == slow
    assert groups_of(range(len(places)), places) == ()
