"""classes.csv: words for prompts and other spellings, wherever labels come from."""

import logging
from pathlib import Path

import datasets
import pytest

from residual_peft.data import load_data
from residual_peft.data.class_list import ClassList, class_list_in
from residual_peft.errors import ResiDualError
from tests.pairs import table


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "classes.csv").write_text(text)
    return folder / "classes.csv"


def test_names_words_and_spellings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name,words,other spellings\n"
        "n01440764,tench,Tinca tinca|a_tench\n"
        "n0144,,gold fish;Goldfish\n",
    )
    found = ClassList.read(path)
    assert found is not None
    expected = {
        "N01440764": "tench", "tinca  tinca": "tench", "a tench": "tench", "tench": "tench",
        "gold_fish": "n0144", "GOLDFISH": "n0144", "n0144": "n0144", "other": "other",
    }  # fmt: skip
    assert {name: found.named(name) for name in expected} == expected | {"tench": "tench"}


@table(
    ("text", "message"),
    [
        ("name,words\ncat,a cat\nCat,a dog\n", "has 'Cat' for two classes, 'a cat' and 'a dog'"),
        ("name,spellings\na,c\nb,C\n", "has 'C' for two classes, 'a' and 'b'"),
        ("name,words\n,a cat\n", "row 0 of "),
        ("name,words\n", "got no rows"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ResiDualError) as raised:
        ClassList.read(write(tmp_path, text))
    assert message in str(raised.value)


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, draw_digits, caplog) -> None:
    draw_digits(tmp_path, by_class=True)
    write(tmp_path, "index,colour\n0,red\n")
    with caplog.at_level(logging.WARNING):
        assert class_list_in(tmp_path) is None
    assert (
        "is not used: wanted columns name and words (or spellings), got index, colour"
        in caplog.text
    )
    assert load_data(tmp_path).class_names == ("one", "two", "zero")


LIST = "name,words,spellings\nzero,the number 0,nought\none,the number 1,\nthree,the number 3,\n"
CALLED = ("the number 0", "the number 1", "two")


def test_folders_are_called_as_it_says(tmp_path: Path, draw_digits, caplog) -> None:
    draw_digits(tmp_path, by_class=True)
    before = load_data(tmp_path)
    (tmp_path / "nought").mkdir()
    (tmp_path / "zero" / "d000.png").rename(tmp_path / "nought" / "d000.png")
    path = write(tmp_path, LIST)
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path)
    assert data.class_names == CALLED
    assert f"{path}: no image is of 'the number 3'" in caplog.text
    assert {split: len(part) for split, part in data.splits.items()} == {
        split: len(part) for split, part in before.splits.items()
    }
    assert sum(map(len, data.splits.values())) == 24


def test_tables_and_several_labels_as_well(tmp_path: Path, draw_digits) -> None:
    rows = draw_digits(tmp_path)
    write(tmp_path, LIST)
    (tmp_path / "t.csv").write_text("\n".join(["file_name,label", *map(",".join, rows)]))
    assert load_data(tmp_path / "t.csv").class_names == CALLED
    lines = [f"{path},{word}|Nought" if word == "one" else f"{path},{word}" for path, word in rows]
    (tmp_path / "u.csv").write_text("\n".join(["file_name,labels", *lines]))
    data = load_data(tmp_path / "u.csv", validation=0, test=0)
    assert data.multi_label
    assert data.class_names == CALLED
    shown = [{data.class_names[n] for n in row} for row in data.train["label"]]
    words = dict(zip(("zero", "one", "two"), CALLED, strict=True))
    assert shown == [{words[w], words["zero"]} if w == "one" else {words[w]} for _, w in rows]


def test_numbers_with_names_are_renamed_and_bare_ones_left() -> None:
    found = ClassList({"cat": "a cat", "dog": "a dog"}, "classes.csv")
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["dog", "Cat"])})
    part = datasets.Dataset.from_dict({"label": [1, 0, None]}, features=kinds)
    part = part.add_column("image", ["a.png", "b.png", "c.png"])
    assert found.applied({"train": part})["train"]["label"][:] == ["a cat", "a dog", None]
    bare = datasets.Dataset.from_dict({"label": [1, 0]})
    assert found.applied({"train": bare})["train"]["label"][:] == [1, 0]
    part = datasets.Dataset.from_dict({"label": [1, -1]}, features=kinds)  # which is not the last
    with pytest.raises(ResiDualError, match="row 1 of the data, split train, has the label -1; w"):
        found.applied({"train": part})
