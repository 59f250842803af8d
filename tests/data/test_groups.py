"""Images that belong together stay together, and few of each class are drawn."""

import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pandas
import pytest
from datasets import Dataset
from PIL import Image

from residual_peft import ResiDualError, load_data
from residual_peft.data.groups import grouped_split, linked_groups
from tests.app.fitting.photos import photos


def linked_slowly(first: list[int], second: list[str]) -> list[int]:
    """Every value of `first` takes the least number that rows lead to, until nothing changes."""
    number = dict(zip(first, first, strict=True))
    while True:
        best: dict[str, int] = {}
        for one, other in zip(first, second, strict=True):
            best[other] = min(best.get(other, 10**6), number[one])
        new = dict(number)
        for one, other in zip(first, second, strict=True):
            new[one] = min(new[one], best[other])
        if new == number:
            return [number[value] for value in range(max(first) + 1)]
        number = new


def test_linked_groups_are_those_of_the_slow_twin() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(2, 30))
        rows = np.concatenate([np.arange(count), generator.integers(0, count, 9)])
        names = [f"p{n}" for n in generator.integers(0, 25, len(rows))]
        found = linked_groups(rows, names).tolist()
        slow = linked_slowly(rows.tolist(), names)
        firsts = {number: place for place, number in enumerate(dict.fromkeys(slow))}
        assert found == [firsts[number] for number in slow]


def test_grouped_splits_keep_groups_whole_and_every_class_to_learn_from() -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        groups = generator.integers(0, 40, 300)
        labels = (groups % 4 + (generator.random(300) < 0.1)) % 4  # classes hang together in groups
        several = np.eye(4, dtype=np.int64)[labels]
        for given in (labels, several):
            parts = grouped_split(given, groups, {"validation": 0.1, "test": 0.2}, seed)
            own = {name: set(groups[rows].tolist()) for name, rows in parts.items()}
            assert sum(map(len, own.values())) == len(set(groups.tolist()))
            assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(300))
            assert set(labels[parts["train"]].tolist()) == {0, 1, 2, 3}
            assert 30 <= len(parts["test"]) <= 90
    one_each = grouped_split(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 2]), {}, 0)
    assert len(one_each["train"]) == 6
    with pytest.raises(ResiDualError, match=r"train, test, and each class .* got 1 group t"):
        grouped_split(labels, np.zeros(300, np.int64), {"test": 0.5}, 0)


def test_few_groups_are_cut_as_they_can_be_or_said_to_be_too_few() -> None:
    """Against all ways to give groups to parts: one that is found is one, none is found of none."""
    generator, missed, none = np.random.default_rng(0), 0, 0
    for trial in range(400):
        count = int(generator.integers(4, 30))
        groups = np.unique(generator.integers(0, generator.integers(2, 6), count), False, True)[1]
        labels = generator.integers(0, generator.integers(1, 4), count)
        ones = labels[:, None] == np.unique(labels)
        if trial % 3 == 0:
            labels = ones = (generator.random((count, 3)) < 0.4).astype(np.int64)
        shares = {"validation": 0.1, "test": 0.1} if trial % 2 else {"test": 0.3}
        has = np.array([ones[groups == group].any(0) for group in range(groups.max() + 1)])

        def fits(parts, has=has, shares=shares):
            train = has[np.array(parts) == 0]
            return len(set(parts)) > len(shares) and (train.any(0) == has.any(0)).all()

        ways = product(range(len(shares) + 1), repeat=len(has))
        found = {}
        with suppress(ResiDualError):
            found = grouped_split(labels, groups, shares, int(generator.integers(2**32)))
        if not found:
            possible = any(map(fits, ways))
            missed, none = missed + possible, none + (not possible)
            continue
        own = [np.unique(groups[rows]).tolist() for rows in found.values()]
        assert fits([next(n for n, o in enumerate(own) if g in o) for g in range(len(has))])
        assert sorted(g for one in own for g in one) == list(range(len(has)))
        assert sum(map(len, found.values())) == count
    assert none > 20
    assert missed < 12  # the search is greedy


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pandas.DataFrame:
    """30 images of 3 classes, of 10 people; a copy of one image is of another person."""
    root = photos(tmp_path_factory.mktemp("groups") / "photos", count=10)
    paths = sorted(root.rglob("*.png"))
    rows = [(str(p), p.parent.name, f"p{n % 10}") for n, p in enumerate(paths)]
    copy = root / "cat" / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    rows.append((str(copy), "cat", "p7"))
    return pandas.DataFrame(rows, columns=["file", "species", "person"])


def test_a_column_of_groups_is_kept_apart_from_labels(table, tmp_path) -> None:
    table.to_csv(tmp_path / "a.csv", index=False)
    whole = Dataset.from_pandas(table).rename_columns({"file": "image", "species": "label"})
    for seed, data in enumerate((table, str(tmp_path / "a.csv"), whole)):
        found = load_data(data, group_column="person", seed=seed, test=0.2)
        assert found.train.column_names == ["image", "label"]
        for split, people in found.groups.items():
            assert len(people) == len(found[split]) == len(found.digests[split])
            others = [set(found.groups[other]) for other in found.splits if other != split]
            assert not set(people) & set().union(*others)
        (place,) = [split for split, people in found.groups.items() if "p0" in people]
        assert "p7" in found.groups[place]  # the copy joins the two
        assert found.split.group_column == "person"
        again = load_data(data, group_column="person", seed=seed, test=0.2)
        assert again.digests == found.digests
        less = found.without("train", [0])
        assert less.groups["train"] == found.groups["train"][1:]
    with pytest.raises(ResiDualError, match="has no column 'who', only"):
        load_data(table, group_column="who")
    with pytest.raises(ResiDualError, match="cannot be both label and group"):
        load_data(table, label_column="species", group_column="species")
    with pytest.raises(ResiDualError, match="leave out few or the group column"):
        load_data(table, group_column="person", few=2)


def test_few_of_each_class_are_learned_from_and_the_others_tested(table, tmp_path, caplog) -> None:
    root = photos(tmp_path / "photos", count=9)
    for path in sorted((root / "owl").iterdir())[1:]:
        path.unlink()  # a class with a single image
    for number in range(6):  # copies are no more images, and one of two classes is of neither
        shutil.copy(root / "cat" / "000.png", root / "cat" / f"copy-{number}.png")
    for name in ("cat", "dog"):
        Image.new("RGB", (20, 20)).save(root / name / "either.png")
    found = load_data(root, few=4, seed=1)
    counts = np.bincount(found.train["label"])
    assert counts.tolist() == [4, 4, 1]
    assert set(found.splits) == {"train", "test"}
    assert np.bincount(found.test["label"]).tolist() == [5, 5]
    assert "1 class with no more than the 4 images to draw: 'owl' (1)" in caplog.text
    assert not set(found.digests["train"]) & set(found.digests["test"])
    assert found.split.few == 4
    other = load_data(root, few=4, seed=2)
    assert other.digests["train"] != found.digests["train"]
    own = photos(tmp_path / "own", count=3, seed=9)
    caplog.clear()
    third = load_data(root, few=4, seed=1, test=str(own), validation=str(own))
    assert third.digests["train"] == found.digests["train"]
    assert (len(third.test), len(third.validation)) == (9, 9)  # what is named stays
    for few in (1, 3):  # none need be kept for a test that is there
        assert len(load_data(own, few=few, test=str(root)).train) == 3 * few
    assert "than the 3 images to draw" not in caplog.text
    for wrong in ({"few": "3"}, {"few": 2.5}, {"few": -1}, {"seed": 2**32}, {"seed": -1}):
        with pytest.raises(ResiDualError, match=f"the split, field {next(iter(wrong))}: wanted a"):
            load_data(root, **wrong)
    assert load_data(root, few=np.int64(4), seed=np.int64(1)).digests == found.digests


def test_who_is_in_two_splits_or_in_no_group_is_said(table, tmp_path, caplog) -> None:
    rows = table.assign(person=["" if n < 12 else f"p{n % 6}" for n in range(len(table))])
    rows.loc[3, "person"] = None
    data = load_data(rows, group_column="person", test=0.2)
    assert "12 images of the data without a group: each is one by itself" in caplog.text
    own = [group for groups in data.groups.values() for group in groups]
    assert "None" not in own
    assert len(set(own)) == 12 + 6  # an image of them has a copy, which is of p0
    for test in (table[20:], str(tmp_path / "test.csv")):
        table[20:].to_csv(tmp_path / "test.csv", index=False)
        caplog.clear()
        load_data(table[:13], group_column="person", test=test, validation=0)
        assert "10 groups of train in test of the data as well, with 11 of its 11" in caplog.text
    numbered = table.assign(person=[n % 7 for n in range(len(table))]).rename(
        columns={"file": "image", "species": "label"}
    )
    floats = Dataset.from_pandas(numbered[:20].astype({"person": float}))  # 1.0, as pandas has them
    caplog.clear()
    load_data(floats, group_column="person", test=numbered[20:], validation=0)
    assert "7 groups of train in test of the data" in caplog.text


def test_what_was_cut_is_cut_otherwise_by_nobody(table) -> None:
    data = load_data(table, group_column="person", seed=3, test=0.2)
    assert load_data(data, group_column="person", seed=3, test=0.2, validation=0) is data
    assert load_data(data) is data
    assert load_data(data, known_classes=data.class_names, validation=0, test=0) is data
    wrong = {"few": 2, "seed": 4, "group_column": "species", "validation": 0.3, "test": table}
    for name, value in wrong.items():
        with pytest.raises(
            ResiDualError, match=f"ImageData, which has been read .*; wanted {name}="
        ):
            load_data(data, **{name: value})
    with pytest.raises(ResiDualError, match="wanted other columns, classes or splits"):
        load_data(data, label_column="species")
    came = load_data(table.drop(columns="person").assign(split="test"))
    assert load_data(came, seed=9, test=0.4) is came  # what came in is cut by no share


def test_groups_are_neither_images_nor_labels(table, tmp_path) -> None:
    table.to_csv(tmp_path / "a.csv", index=False)
    whole = Dataset.from_pandas(table).rename_columns({"file": "image", "species": "label"})
    for data, column, message in (
        (table, "species", "'species' of the data cannot be both label and group"),
        (str(tmp_path / "a.csv"), "file", "'file' of .* cannot be both image and group"),
        (table.rename(columns={"person": "image"}), "image", "with image_column='file'"),
        (whole, "label", r"\(but for its groups, 'label'\) has no label column"),
    ):
        with pytest.raises(ResiDualError, match=message):
            load_data(data, group_column=column)


def test_splits_of_their_own_take_the_place_of_what_the_data_have(tmp_path, caplog) -> None:
    root = photos(tmp_path / "photos", count=6)
    own = photos(tmp_path / "own" / "test", count=3, seed=1)
    photos(tmp_path / "own" / "train", count=4, seed=2)
    one = load_data(root, test=tmp_path / "own", validation=0)  # its own test split
    assert (set(one.splits), len(one.train), len(one.test)) == ({"train", "test"}, 18, 9)
    assert one.split.shares == {}
    pairs = [(str(path), path.parent.name) for path in own.rglob("*.png")]
    two = load_data(root, validation=pairs)
    assert (len(two.validation), len(two.test)) == (9, 3)
    three = load_data(tmp_path / "own", test=str(root), validation=0.25)
    assert (len(three.train), len(three.test)) == (9, 18)
    (tmp_path / "bad" / "cow").mkdir(parents=True)
    next(own.rglob("*.png")).rename(tmp_path / "bad" / "cow" / "1.png")
    with pytest.raises(
        ResiDualError, match=r"split test \(.*bad\), has the label 'cow', .*\(cat, dog"
    ):
        load_data(root, test=tmp_path / "bad")


def test_folders_are_pictures(tmp_path: Path) -> None:
    """A folder of class folders has no column to group by, and says which it has."""
    root = photos(tmp_path / "photos", count=3)
    with pytest.raises(ResiDualError, match="has no column 'person', only image, label; name anot"):
        load_data(root, group_column="person")
