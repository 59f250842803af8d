"""Tables of paths and labels as data: the columns, the folder they are below, splits, mistakes."""

import io
import json
import logging
import unicodedata
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from tests import pairs


def whole(source, **options):
    return load_data(source, validation=0, test=0, **options)


def pairs_of(data) -> set[tuple[str, str]]:
    """Name of the file and class of every image."""
    rows = data.train.cast_column("image", datasets.Image(decode=False))
    return {(Path(row["image"]["path"]).name, data.class_names[row["label"]]) for row in rows}


def table(path: Path, rows, header=("file_name", "label"), mark: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(mark.join(map(str, row)) for row in (header, *rows)) + "\n")
    return path


@pytest.fixture
def digits(tmp_path: Path, draw_digits):
    """Folder, and rows of paths below it and words."""
    folder = tmp_path / "digits"
    return folder, draw_digits(folder)


def test_every_kind_of_table_gives_the_same_images(digits, tmp_path, monkeypatch) -> None:
    folder, rows = digits
    frame = pandas.DataFrame(rows, columns=["file_name", "label"])
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_csv(folder / "a.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "a.parquet")
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    expected = set(rows)
    found = [whole(folder / f"a.{kind}") for kind in ("csv", "tsv", "parquet", "jsonl")]
    absolute = [(folder / path, word) for path, word in rows]
    found += [whole(absolute), whole(pandas.DataFrame(absolute, columns=["photo", "species"]))]
    found += [whole([(Image.open(path), word) for path, word in absolute])]
    for data in found[:-1]:
        assert pairs_of(data) == expected
    assert len({data.digests["train"] for data in found[:-1]}) == 1
    assert [len(data.train) for data in found] == [24] * 7
    monkeypatch.chdir(folder)
    assert pairs_of(whole(rows)) == expected


def test_cutting_is_that_of_class_folders(tmp_path: Path, draw_digits) -> None:
    """The same images are shared out in the same way, whatever says which class they are of."""
    rows = draw_digits(tmp_path / "p", 60, by_class=True)
    by_folder = load_data(tmp_path / "p")
    by_table = load_data(table(tmp_path / "p" / "t.csv", rows))
    assert by_table.split == by_folder.split
    for split, digests in by_folder.digests.items():
        assert sorted(by_table.digests[split]) == sorted(digests)
    assert by_table.class_names == by_folder.class_names


@pairs.table(
    ("header", "options"),
    [
        (("file_name", "label"), {}),
        (("Image Path", "Species"), {}),
        (("img", "n"), {}),  # the only other column
        (("x", "y"), {}),  # the only one of paths
        (("x", "y"), {"image_column": "x", "label_column": "y"}),
        (("d000.png", "zero"), {}),  # no header: the first row is an image
    ],
)
def test_columns_are_found_or_named(digits, header, options) -> None:
    folder, rows = digits
    headless = header[0] == rows[0][0]
    path = table(folder / "t.csv", rows[1:] if headless else rows, header)
    assert pairs_of(whole(path, **options)) == set(rows)
    if headless:  # nor where classes come first
        path = table(folder / "t.csv", [row[::-1] for row in rows[1:]], header[::-1])
        assert pairs_of(whole(path)) == set(rows)


def test_more_columns_are_no_hindrance_where_names_say_which(digits) -> None:
    folder, rows = digits
    more = [(n, path, word, "x") for n, (path, word) in enumerate(rows)]
    path = table(folder / "t.csv", more, ("id", "file_name", "label", "note"))
    assert pairs_of(whole(path)) == set(rows)
    path = table(folder / "u.csv", more, ("id", "a", "b", "c"))
    with pytest.raises(ResiDualError) as raised:
        whole(path)
    message = (
        "has no column of labels that could be told among id, a, b, c; name it with label_column="
    )
    assert message in str(raised.value)
    with pytest.raises(ResiDualError, match=r"no column of file names or images .*--image-column"):
        whole(path, image_column="file")
    assert pairs_of(whole(path, label_column="b")) == set(rows)


def test_a_column_of_splits_is_obeyed(digits) -> None:
    folder, rows = digits
    parts = ("train", "Val", "testing")
    more = [(*row, parts[n // 3 % 3]) for n, row in enumerate(rows)]
    data = load_data(table(folder / "t.csv", more, ("file_name", "label", "split")))
    assert {split: len(part) for split, part in data.splits.items()} == Counter(
        {"train": 9, "validation": 9, "test": 6}
    )
    assert data.split.shares == {}
    # as CoOp's split_zhou_*.json, beside a folder that the paths are below
    coop: dict[str, list] = {split: [] for split in ("train", "val", "test")}
    for (path, word), split in zip(rows, (row[2] for row in more), strict=True):
        coop[{"Val": "val", "testing": "test"}.get(split, split)].append([path, 7, word])
    (folder.parent / "split_zhou_Digits.json").write_text(json.dumps(coop))
    again = load_data(folder.parent / "split_zhou_Digits.json")
    assert {split: sorted(digests) for split, digests in again.digests.items()} == {
        split: sorted(digests) for split, digests in data.digests.items()
    }
    assert pairs_of(again) == pairs_of(data)
    for other, said in (("holdout", "'holdout'"), ("", "None")):
        more[2] = (*rows[2], other)
        with pytest.raises(ResiDualError, match=f"row 2 of .* has {said} in the column 'split', w"):
            load_data(table(folder / "t.csv", more, ("file_name", "label", "split")))


def test_images_in_memory_are_what_their_files_are(digits) -> None:
    folder, rows = digits
    arrays = [(np.asarray(Image.open(folder / path).convert("RGB")), word) for path, word in rows]
    tensors = [(torch.from_numpy(array.copy()).permute(2, 0, 1), word) for array, word in arrays]
    kinds = {
        "arrays": arrays,
        "floats": [(array / 255, word) for array, word in arrays],
        "tensors": tensors,
        "floats in tensors": [(tensor.float() / 255, word) for tensor, word in tensors],
        "bytes": [((folder / path).read_bytes(), word) for path, word in rows],
        "files": [(io.BytesIO((folder / path).read_bytes()), word) for path, word in rows],
        "one of each": [tensors[0], (folder / rows[1][0], rows[1][1]), *arrays[2:]],
    }
    files = [np.asarray(image) for image, _ in arrays]
    for kind, given in kinds.items():
        data = whole(given)
        found = [np.asarray(image.convert("RGB")) for image in data.train["image"]]
        assert all(map(np.array_equal, found, files)), kind
        assert [data.class_names[n] for n in data.train["label"]] == [word for _, word in rows]
    spoilt = [*tensors[:3], (tensors[3][0].float() - 2, tensors[3][1])]
    with pytest.raises(
        ResiDualError, match=r"wanted row 3 of the data with whole numbers .* pixel"
    ):
        whole(spoilt)


def test_one_name_in_two_forms_is_one_class(tmp_path: Path, draw_digits) -> None:
    """macOS parts an o umlaut into two characters, which nobody sees."""
    forms = [unicodedata.normalize(form, "V\xf6gel") for form in ("NFC", "NFD")]
    assert len(set(forms)) == 2
    draw_digits(tmp_path, by_class=True)
    for number, name in zip(("zero", "one", "two"), (*forms, "Fische"), strict=True):
        (tmp_path / number).rename(tmp_path / name)
    data = load_data(tmp_path)
    assert data.class_names == ("Fische", forms[0])
    rows = [(path, path.parent.name) for path in tmp_path.rglob("*.png")]
    (tmp_path / "classes.csv").write_text(f"name,words\n{forms[1]},bird\n")
    assert whole(rows).class_names == data.class_names
    assert load_data(tmp_path).class_names == ("Fische", "bird")


def test_several_labels_in_lists_or_between_marks(digits) -> None:
    folder, rows = digits
    several = [[word, "even"] if word != "one" else [word] for _, word in rows]
    several[0] = []
    paired = [(path, labels) for (path, _), labels in zip(rows, several, strict=True)]
    lines = [{"file_name": path, "labels": labels} for path, labels in paired]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    joined = [(path, "|".join(labels)) for path, labels in paired]
    path = table(folder / "t.csv", joined, ("file_name", "labels"))
    frame = pandas.DataFrame({"file": [str(folder / p) for p, _ in rows], "labels": several})
    frame["labels"] = frame["labels"].map(np.array)  # as pandas reads them of a parquet file
    for source in (folder / "t.jsonl", path, frame):
        data = whole(source)
        assert data.multi_label
        assert data.class_names == ("even", "one", "two", "zero")
        shown = [{data.class_names[n] for n in row} for row in data.train["label"]]
        assert shown == [set(labels) for labels in several]
    mixed = [(folder / p, own[0] if len(own) == 1 else own) for p, own in paired]
    assert whole(mixed).train["label"] == data.train["label"]
    as_text = [(p, str(own).replace(",", " ")) for p, own in paired]  # as pandas writes them
    with pytest.raises(ResiDualError, match=r"row 0 has the label '\[\]' in the column"):
        whole(table(folder / "l.csv", as_text, ("file_name", "labels")))
    frame["labels"] = [np.array([n % 2, 1 - n % 2]) for n in range(len(rows))]
    with pytest.raises(ResiDualError, match="column 'labels' are a 0 or 1 per class"):
        load_data(frame)


def test_numbers_are_names_unless_somebody_says_what_they_mean(digits) -> None:
    folder, rows = digits
    words = ("zero", "one", "two")
    numbered = [(path, words.index(word)) for path, word in rows]
    path = table(folder / "t.csv", numbered)
    assert whole(path).class_names == ("0", "1", "2")
    floats = table(folder / "f.csv", [(p, float(n)) for p, n in numbered])  # as pandas writes them
    pairs = [(folder / p, n) for p, n in numbered]
    for source in (path, floats, pairs, [(p, np.int64(n)) for p, n in pairs]):
        data = whole(source, class_names=words)
        assert data.class_names == words
        assert pairs_of(data) == set(rows)
    several = whole([(p, [n]) for p, n in pairs], class_names=words)
    assert several.train["label"] == [[n] for _, n in pairs]
    for nothing in (None, float("nan")):
        pairs[3] = (pairs[3][0], nothing)
        with pytest.raises(ResiDualError, match="row 3 of the data, split train, has no label"):
            whole(pairs, class_names=words)


def test_paths_are_found_where_they_are_meant_to_begin(
    digits, tmp_path, monkeypatch, caplog
) -> None:
    rows = digits[1]
    monkeypatch.chdir(tmp_path)
    below = [(f"digits/{path}", word) for path, word in rows]
    for number, given in enumerate((
        below,  # from where one works, not from the table
        [(path.replace("/", "\\"), word) for path, word in below],
        rows,  # the table lies above the images
        [(path.removesuffix(".png"), word) for path, word in rows],  # as Kaggle's ids
        [(f"C:/photos/{path}", word) for path, word in rows],  # of another machine
    )):  # fmt: skip
        path = table(tmp_path / ("other" if number < 2 else ".") / "t.csv", given)
        with caplog.at_level(logging.WARNING):
            assert pairs_of(whole(path)) == set(rows)
        said = "paths are below" if number < 2 else "24 images of 24 found by their names, most in"
        assert said in caplog.text
        caplog.clear()


def test_names_that_occur_twice_are_told_apart_by_their_folders(tmp_path, draw_digits) -> None:
    for word, seed in (("zero", 0), ("one", 1)):
        draw_digits(tmp_path / "data" / "images" / word, 6 + seed)
    names = [f"{word}/d{n:03}.png" for word in ("zero", "one") for n in range(6)]
    given = [(f"elsewhere/{name}", name.split("/")[0]) for name in names]
    data = whole(table(tmp_path / "t.csv", given))
    rows = data.train.cast_column("image", datasets.Image(decode=False))
    found = {(row["image"]["path"], data.class_names[row["label"]]) for row in rows}
    assert found == {
        (str(tmp_path / "data" / "images" / name), name.split("/")[0]) for name in names
    }
    with pytest.raises(ResiDualError, match=r"none of the 6 images that .*is 'd000\.png'"):
        whole(table(tmp_path / "u.csv", [(f"d{n:03}.png", "zero") for n in range(6)]))


def test_files_that_are_missing_are_skipped_or_end_it(digits) -> None:
    folder, rows = digits
    path = table(folder / "t.csv", [*rows, ("gone.png", "one")])
    data = whole(path)
    (skipped,) = data.skipped
    assert (skipped.file, skipped.reason) == (str(folder / "gone.png"), "no such file")
    with pytest.raises(ResiDualError, match=r"none of the 1 image that .*is 'gone\.png'"):
        whole(table(folder / "u.csv", [("gone.png", "one")]))


@pairs.table(
    ("rows", "message"),
    [
        ([("", "one")], "row 24 of "),
        ([("https://x.org/a.png", "one")], "is an address on the web ('https://x.org/a.png')"),
        ([("d000.png", "")], "row 24 of "),
        ([("d000.png", " ")], "row 24 of "),
    ],
)
def test_rows_that_cannot_be_used_are_named(digits, rows, message: str) -> None:
    folder, good = digits
    with pytest.raises(ResiDualError) as raised:
        whole(table(folder / "t.csv", [*good, *rows]))
    assert message in str(raised.value)


def test_images_beside_each_other_are_listed_by_the_one_table_there_is(digits) -> None:
    folder, rows = digits
    table(folder / "labels.csv", rows)
    data = whole(folder)
    assert data.source == str(folder)
    assert pairs_of(data) == set(rows)
    table(folder / "more.csv", rows)
    with pytest.raises(ResiDualError, match="found no images in a class folder"):
        whole(folder)


def test_class_folders_come_before_a_table_beside_them(tmp_path: Path, draw_digits) -> None:
    rows = draw_digits(tmp_path, by_class=True)
    table(tmp_path / "labels.csv", [(path, "other") for path, _ in rows])
    assert whole(tmp_path).class_names == ("one", "two", "zero")
    for n, path in enumerate(sorted(tmp_path.rglob("*.png"))):  # one folder further down
        path.parent.joinpath("ab"[n % 2]).mkdir(exist_ok=True)
        path.rename(path.parent / "ab"[n % 2] / path.name)
    pandas.DataFrame({"x": [1]}).to_parquet(tmp_path / "notes.parquet")  # of no images
    assert whole(tmp_path).class_names == ("one", "two", "zero")


@pairs.table(
    ("name", "message"),
    [
        ("labels.xlsx", "got the spreadsheet '"),
        ("labels.txt", "or a zip or tar, got the file '"),
        ("gone.csv", "', but there is no such file."),
        ("gone.zip", "', but there is no such file."),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, name: str, message: str) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ResiDualError) as raised:
        whole(tmp_path / name)
    assert message in str(raised.value)


def test_parquet_with_images_in_it(digits, tmp_path: Path) -> None:
    folder, rows = digits
    given = {"image": [str(folder / path) for path, _ in rows], "label": [word for _, word in rows]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    made = datasets.Dataset.from_dict(given, features=kinds)
    made.map(lambda row: row).to_parquet(tmp_path / "t.parquet")
    data = whole(tmp_path / "t.parquet")
    assert data.digests == whole(table(folder / "t.csv", rows)).digests
