"""Where the imagefolder of datasets sees splits and labels, so does `load_data`."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from tests.pairs import table

CLASSES = ("cat", "dog")


def write(root, tree):
    """Files by path: a text, a list of rows of a table, or pictures "folder/*" by their number."""
    values = np.random.default_rng(0)
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, list):
            table = pandas.DataFrame(content)
            if path.suffix == ".csv":
                table.to_csv(path, index=False)
            elif path.suffix == ".parquet":
                table.to_parquet(path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            names = [f"{i}.png" for i in range(content)] if path.name == "*" else [path.name]
            for file in names:
                pixels = values.integers(0, 256, (4, 4, 3), np.uint8)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path.parent / file)
    return root


def both(folder, count):
    return {f"{folder}/{name}/*": count for name in CLASSES}


def listing(names, count, start=0):
    """Rows of metadata for pictures by folder."""
    return [
        {"file_name": f"{folder}{i}.png", "label": label}
        for folder, label in names
        for i in range(start, start + count)
    ]


def flat(count):
    return listing([("", "cat")], count) + listing([("", "dog")], count, count)


LAYOUTS = {
    "classes": {"cat/*": 5, "dog/*": 5},
    "train, val": both("train", 4) | both("val", 2),
    "train, validation, test": both("train", 4) | both("validation", 2) | both("test", 2),
    "training, valid, testing": both("training", 4) | both("valid", 2) | both("testing", 2),
    "train, dev, evaluation": both("train", 4) | both("dev", 2) | both("evaluation", 2),
    "a stray folder": both("train", 4) | both("val", 2) | {"annotations/figures/*": 3},
    "a stray folder of other pictures": both("train", 4) | {"unlabeled/*": 3},
    "hidden and private folders": both("train", 4) | {"__MACOSX/a/*": 2, ".ipynb_checkpoints/*": 2},
    "classes beside hidden ones": {"cat/*": 4, "dog/*": 4, "__MACOSX/*": 2, ".trash/*": 2},
    "val and validation": both("train", 4) | both("val", 2) | both("validation", 3),
    "test and eval": both("train", 4) | both("test", 2) | both("eval", 3),
    "train, test_set": both("train", 4) | both("test_set", 2),
    "train_2017, val2017": both("train_2017", 4) | both("val2017", 2),
    "my-train, my test": both("my-train", 4) | both("my test", 2),
    "below one folder": both("photos/train", 4) | both("photos/test", 2),
    "classes below one folder": {"photos/cat/*": 4, "photos/dog/*": 4},
    "several folders of each split": both("a/train", 3) | both("b/train", 3) | both("b/test", 2),
    "each split in a folder of its name": both("seg_train/seg_train", 4)
    | both("seg_test/seg_test", 2)
    | {"seg_pred/seg_pred/*": 3},
    "one split in a folder of its name": both("seg_train/seg_train", 4),
    "one split in a folder of its name, beside others": both("seg_train/seg_train", 4)
    | {"seg_pred/seg_pred/*": 3},
    "val has fewer classes": both("train", 4) | {"val/cat/*": 2},
    "a class with the letters of a split": {"trainer/*": 4, "contest/*": 4, "devil/*": 4},
    "other files": both("train", 3) | {"train/cat/a.txt": "x", "b.json": "{}", "Thumbs.db": "x"},
    "empty folders": {"cat/*": 4, "dog/*": 4, "cow/notes.txt": "none yet"},
    "endings in capitals": {"cat/A.PNG": 1, "cat/B.JPG": 1, "dog/C.Png": 1, "dog/D.jpeg": 1},
    "splits in the names of files": {
        f"{name}/{split}_{i}.png": 1
        for name in CLASSES
        for split in ("train", "test")
        for i in "123"
    },
    "splits at the ends of names": {
        f"{name}/{i}-{split}.png": 1 for name in CLASSES for split in ("train", "dev") for i in "12"
    },
    "metadata.csv": {"*": 10, "metadata.csv": flat(5)},
    "metadata.jsonl": {"*": 10, "metadata.jsonl": flat(5)},
    "metadata.parquet": {"*": 10, "metadata.parquet": flat(5)},
    "metadata of pictures below": {
        "pictures/*": 10,
        "metadata.csv": listing([("pictures/", "cat")], 5) + listing([("pictures/", "dog")], 5, 5),
    },
    "metadata in splits": {
        "train/*": 8,
        "test/*": 4,
        "train/metadata.csv": flat(4),
        "test/metadata.csv": flat(2),
    },
    "metadata in class folders": {
        "cat/*": 3,
        "dog/*": 3,
        "cat/metadata.jsonl": listing([("", "tabby")], 3),
        "dog/metadata.jsonl": listing([("", "poodle")], 3),
    },
    "metadata against folders": {
        "cat/*": 3,
        "dog/*": 3,
        "metadata.csv": listing([("cat/", "tabby"), ("dog/", "poodle")], 3),
    },
    "metadata beside the splits": both("train", 4) | both("test", 2) | {"metadata.csv": flat(2)},
    "metadata for some pictures": {"*": 10, "metadata.csv": flat(5)[2:-2]},
    "another column of file names": {
        "*": 6,
        "metadata.csv": [
            {"photo_file_name": f"{i}.png", "label": CLASSES[i % 2]} for i in range(6)
        ],
    },
    "more columns": {
        "*": 6,
        "metadata.csv": [
            {"file_name": f"{i}.png", "size": i, "label": CLASSES[i % 2], "text": "x"}
            for i in range(6)
        ],
    },
    "several labels": {
        "*": 6,
        "metadata.jsonl": [
            {"file_name": f"{i}.png", "label": list(CLASSES[: i % 2 + 1])} for i in range(6)
        ],
    },
}


def named(dataset, root, label_names=None):
    """Path -> class, or classes."""
    column = next(c for c, kind in dataset.features.items() if isinstance(kind, datasets.Image))
    stored = dataset.cast_column(column, datasets.Image(decode=False))[:]
    kind = dataset.features["label"]
    kind = getattr(kind, "feature", kind)

    def name(label):
        if isinstance(label, list):
            return [name(each) for each in label]
        return kind.int2str(label) if isinstance(label, int) else label

    paths = [str(Path(image["path"]).relative_to(root)) for image in stored[column]]
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, map(name, stored["label"]), strict=True))


@table("layout", LAYOUTS)
def test_splits_and_labels_are_those_of_imagefolder(tmp_path, layout):
    root = write(tmp_path / "data", LAYOUTS[layout])
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache")
    )
    ours = load_data(root, validation=0, test=0)
    expected = {str(split): named(dataset, root) for split, dataset in theirs.items()}
    assert {split: named(dataset, root) for split, dataset in ours.splits.items()} == expected
    assert not ours.skipped


@table(
    ("name", "kind"),
    [
        ("far/data", "csv"),
        (".", "jsonl"),
        ("~/far/data", "parquet"),
        ("../here/far/data", "csv"),
        ("link", "jsonl"),
        ("link/../data", "csv"),
    ],
)
def test_a_folder_with_metadata_may_be_named_in_any_way(tmp_path, monkeypatch, name, kind):
    rows = [
        {"file_name": f"{split}/{i}.png", "label": CLASSES[i % 2]}
        for split in ("train", "test")
        for i in range(4)
    ]
    tree = {"train/*": 4, "test/*": 4, f"metadata.{kind}": rows}
    root = write(tmp_path / "here" / "far" / "data", tree)
    (tmp_path / "here" / "link").symlink_to(root)
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.chdir(root if name == "." else tmp_path / "here")
    data = load_data(name, validation=0, test=0)
    monkeypatch.chdir("/")  # the images are found from anywhere
    assert {split: len(d) for split, d in data.splits.items()} == {"train": 4, "test": 4}
    assert data.train[0]["image"].size == (4, 4)


@pytest.mark.parametrize("tree", [{"cat/*": 4, "dog/*": 4}, {"*": 10, "metadata.csv": flat(5)}])
def test_images_of_a_relative_folder_are_found_from_anywhere(tmp_path, monkeypatch, tree):
    write(tmp_path / "data", tree)
    monkeypatch.chdir(tmp_path)
    data = load_data("data", validation=0, test=0)
    monkeypatch.chdir("/")
    assert data.source == "data"
    assert data.train[0]["image"].size == (4, 4)


def test_a_folder_of_nobody_is_named_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "~nobody there", {"cat/*": 4, "dog/*": 4})
    assert load_data("~nobody there", validation=0, test=0).class_names == CLASSES


def sizes(root):
    data = load_data(root, validation=0, test=0)
    return {
        split: {name: list(named(d, root).values()).count(name) for name in data.class_names}
        for split, d in data.splits.items()
    }


TRAIN = both("train", 4)
OWN_WAYS = {
    "capitals": (
        both("Train", 4) | both("VAL", 2),
        {"train": {"cat": 4, "dog": 4}, "validation": {"cat": 2, "dog": 2}},
        "",
    ),
    "classes that are called like splits": (
        {"train/*": 3, "car/*": 4, "bus/*": 2},
        {"train": {"bus": 2, "car": 4, "train": 3}},
        "'train' named like a split, without class folders in it, is taken for a class",
    ),
    "a class that is called like a split, with one folder in it": (
        {"cat/*": 2, "dog/*": 2, "test-shots/wide/*": 2},
        {"train": {"cat": 2, "dog": 2, "test-shots": 2}},
        "'test-shots' named like a split, without class folders in it, is taken for a class",
    ),
    "two classes whose names hold those of splits": (
        {"test tube/*": 2, "train station/*": 2},
        {"train": {"test tube": 2, "train station": 2}},
        "named like a split, without class folders in it, is taken for a class",
    ),
    "a class that is called like a split, below the splits": (
        {"train/phone/*": 3, "train/test-tube/*": 3, "test/phone/*": 1, "test/test-tube/*": 1},
        {"train": {"phone": 3, "test-tube": 3}, "test": {"phone": 1, "test-tube": 1}},
        "",
    ),
    "the top folder is the class": (
        {"cat/a/*": 2, "cat/b/*": 2, "dog/a/*": 2},
        {"train": {"cat": 4, "dog": 2}},
        "the class of an image is its top folder, not the innermost ('a', 'b')",
    ),
    "the top folder below the split": (
        {"train/cat/a/*": 2, "train/dog/b/*": 2, "test/cat/a/*": 1},
        {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 0}},
        "the class of an image is its top folder, not the innermost ('a', 'b')",
    ),
    "splits in one more folder, or two, or none": (
        both("train/a/b", 4) | both("val/c", 2) | both("test", 1),
        {
            "train": {"cat": 4, "dog": 4},
            "validation": {"cat": 2, "dog": 2},
            "test": {"cat": 1, "dog": 1},
        },
        "",
    ),
    "the only class of a split, with a folder in it": (
        {"train/cat/*": 2, "train/dog/*": 2, "test/cat/a/*": 2},
        {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 0}},
        "",
    ),
    "folders in some classes": (
        {"cat/a/*": 2, "cat/b/*": 1, "dog/*": 2},
        {"train": {"cat": 3, "dog": 2}},
        "",
    ),
    "loose pictures": (
        {"cat/*": 2, "dog/*": 2, "*": 3},
        {"train": {"cat": 2, "dog": 2}},
        "left out 3 images loose in '",
    ),
    "a test folder without classes": (
        TRAIN | {"test/*": 3},
        {"train": {"cat": 4, "dog": 4}},
        "left out 3 images loose in '",
    ),
    "a stray folder": (
        TRAIN | {"annotations/figures/*": 3},
        {"train": {"cat": 4, "dog": 4}},
        "left out 'annotations' (3 images beside the splits)",
    ),
    "an empty class": (
        {"cat/*": 2, "dog/*": 2, "cow/notes.txt": "none yet"},
        {"train": {"cat": 2, "dog": 2}},
        "left out 'cow' (no images in it)",
    ),
    "one file name with a split in it": (
        {"cat/*": 2, "cat/test 1.png": 1, "dog/*": 2, "dog/test-2.png": 1},
        {"train": {"cat": 3, "dog": 3}},
        "",
    ),
    "splits inside the classes": (
        {"cat/train/*": 3, "cat/test/*": 1, "dog/train/*": 3, "dog/test/*": 1},
        {"train": {"cat": 4, "dog": 4}},
        "'test', 'train' inside the class folders are no splits",
    ),
    "metadata without labels": (
        {"cat/*": 1, "dog/*": 1, "metadata.csv": [{"file_name": "cat/0.png", "text": "a cat"}]},
        {"train": {"cat": 1, "dog": 1}},
        "the metadata have no labels, so classes are folders",
    ),
    "metadata of split folders, above them": (
        {
            "train/*": 4,
            "test/*": 2,
            "metadata.csv": [
                {"file_name": f"{split}/{i}.png", "label": CLASSES[i % 2]}
                for split, count in (("train", 4), ("test", 2))
                for i in range(count)
            ],
        },
        {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}},
        "",
    ),
    "classes that differ in capitals": (
        {"Cat/*": 2, "cat/*": 2},
        {"train": {"Cat": 2, "cat": 2}},
        "the classes 'Cat' and 'cat' differ in capitals only",
    ),
}


@table("layout", OWN_WAYS)
def test_layouts_that_imagefolder_makes_nothing_of(tmp_path, caplog, layout):
    tree, expected, said = OWN_WAYS[layout]
    root = write(tmp_path / "data", tree)
    with caplog.at_level(logging.WARNING, "residual_peft"):
        assert sizes(root) == expected
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)


@table(
    ("tree", "message"),
    [
        (
            {"train/*": 3, "test/*": 3},
            "test' is named like a split; wanted one folder of images per",
        ),
        (
            {"*": 3},
            r"one folder of images per class in '.*', got 3 images beside each other",
        ),
        ({"cat/*": 3, "dog/x.txt": "x"}, r"at least two classes to tell apart, got \['cat'\]"),
        ({"train/*": 3, "test/*": 3, "unlabeled/*": 3}, "test' is named like a split; wanted one"),
        ({"train/cat/*": 3, "test/cat/*": 1}, r"at least two classes to tell apart, got \['cat'\]"),
        (TRAIN | {"test/cow/a/*": 2}, "is of the class 'cow', which the split train of"),
        (TRAIN | {"test/cow/*": 2}, "test/cow' is of the class 'cow', which the split train of"),
        ({"*": 2, "metadata.csv": [{"name": "0.png"}]}, r"metadata.csv' \(.*file_name"),
        ({"*": 2, "metadata.csv": ""}, "could not read '.*metadata.csv'"),
        ({"*": 2, "metadata.jsonl": "{{"}, "could not read '.*metadata.jsonl'"),
        ({"*": 2, "metadata.parquet": "PAR1"}, "could not read '.*metadata.parquet'"),
        ({"*": 2, "metadata.csv": flat(1), "metadata.jsonl": flat(1)}, "different extensions"),
        (
            {"*": 2, "metadata.csv": [{"file_name": "0.png", "text": "x"}]},
            "has no label column among image, text",
        ),
        (
            {"*": 2, "metadata.csv": [{"file_name": "../0.png", "label": "x"}]},
            "could not read '.*metadata.csv'",
        ),
    ],
)
def test_folders_and_metadata_that_are_refused(tmp_path, tree, message):
    root = write(tmp_path / "data", tree)
    with pytest.raises(ResiDualError, match=message):
        load_data(root, validation=0, test=0)


def test_a_label_column_of_the_metadata_may_be_named(tmp_path):
    rows = [{"file_name": f"{name}/{i}.png", "kind": "xy"[i]} for name in CLASSES for i in range(2)]
    root = write(tmp_path / "data", {"cat/*": 2, "dog/*": 2, "metadata.csv": rows})
    data = load_data(root, label_column="kind", validation=0, test=0)
    assert (data.class_names, data.train[:]["label"]) == (("x", "y"), [0, 1, 0, 1])
    assert load_data(root, validation=0, test=0).class_names == CLASSES


def test_a_folder_may_be_called_like_a_pattern(tmp_path):
    root = write(tmp_path / "a[1]*", {"*": 10, "metadata.csv": flat(5)})
    assert len(load_data(root, validation=0, test=0).train) == 10


def test_pictures_that_are_no_images_are_said(tmp_path: Path, caplog) -> None:
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
        path.with_suffix(".SVG").write_text("<svg/>")
        path.with_suffix(".txt").write_text("a note")
    load_data(tmp_path, validation=0, test=0)
    said = (
        "left out 4 .svg files (no kind that PIL reads; each with an image of that name beside it)"
    )
    assert said in caplog.text
    assert ".txt" not in caplog.text
    (tmp_path / "metadata.csv").write_text("file_name,kind\na/0.png,x\nb/1.png,y\nb/3.png,x\n")
    described = load_data(tmp_path, label_column="kind", validation=0, test=0)
    assert described.left_out[0] == "1 image that no metadata name, such as 'a/2.png'"
    assert described.left_out[1] in said
