import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.model_selection
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Sequence,
    Value,
    concatenate_datasets,
)
from datasets import Image as ImageFeature
from PIL import Image

from residual_peft import ZeroShotClassifier
from residual_peft.data import SkippedImage, load_data, stratified_split
from residual_peft.errors import ResiDualError
from tests.pairs import table


def image(value=0, size=4):
    return Image.new("RGB", (size, size), (value, value, value))


def write(folder, count, value=0):
    folder.mkdir(parents=True)
    for i in range(count):
        image(value + i).save(folder / f"{i:02}.png")


def rows(count=30, label=lambda i: i % 3, names=("a", "b", "c"), columns=("image", "label")):
    features = Features({columns[0]: ImageFeature(), columns[1]: ClassLabel(names=list(names))})
    data = {
        columns[0]: [image(i) for i in range(count)],
        columns[1]: list(map(label, range(count))),
    }
    return Dataset.from_dict(data, features=features)


def values(dataset):
    return [(row["image"].getpixel((0, 0))[0], row["label"]) for row in dataset]


def check(data, names, sizes):
    assert data.class_names == tuple(names)
    assert {split: len(d) for split, d in data.splits.items()} == sizes
    for dataset in data.splits.values():
        assert dataset.column_names == ["image", "label"]
        assert isinstance(dataset.features["image"], ImageFeature)
        assert dataset.features["label"].names == list(names)


def test_a_folder_of_class_folders_is_split(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        write(tmp_path / name, 10, 100 * k)
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(str(tmp_path))
    check(data, ("cat", "dog"), {"train": 16, "validation": 2, "test": 2})
    everything = [value for d in data.splits.values() for value in values(d)]
    assert sorted(everything) == [(100 * k + i, k) for k in range(2) for i in range(10)]
    assert load_data(tmp_path).test[:]["label"] == data.test[:]["label"] == [0, 1]


def test_split_folders_are_kept_and_nested_images_found(tmp_path):
    for split, count in (("train", 8), ("VAL", 3), ("testing", 2)):
        for name in ("cat", "dog"):
            write(tmp_path / split / name / "deeper", count)
    check(load_data(tmp_path), ("cat", "dog"), {"train": 16, "validation": 6, "test": 4})


def test_only_a_test_folder_is_only_tested(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / "test" / name, 2)
    data = load_data(tmp_path)
    check(data, ("cat", "dog"), {"test": 4})
    with pytest.raises(ResiDualError, match="has no split 'train', only test"):
        data.train  # noqa: B018


def test_datasets_saved_copies_and_hub_copies_are_the_same(tmp_path):
    dataset = rows()
    expected = {split: values(d) for split, d in load_data(dataset).splits.items()}
    assert sum(map(len, expected.values())) == 30
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict(train=dataset).save_to_disk(tmp_path / "many")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    dataset.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    for source in (
        DatasetDict(train=dataset),
        tmp_path / "one",
        tmp_path / "many",
        tmp_path / "hub",
    ):
        data = load_data(source)
        assert {split: values(d) for split, d in data.splits.items()} == expected
    assert load_data(data) is data


def test_missing_splits_are_cut_from_train_stratified_and_seeded():
    dataset = rows(100, label=lambda i: int(i % 10 > 2) + int(i % 10 > 6))
    data = load_data(dataset, validation=0.2, test=0.1)
    check(data, "abc", {"train": 70, "validation": 20, "test": 10})
    assert np.bincount(data.validation[:]["label"]).tolist() == [6, 8, 6]
    seen = [v for d in data.splits.values() for v, _ in values(d)]
    assert sorted(seen) == list(range(100))
    assert values(load_data(dataset, validation=0.2, test=0.1).test) == values(data.test)
    assert values(load_data(dataset, validation=0.2, test=0.1, seed=1).test) != values(data.test)
    check(load_data(dataset, validation=0, test=0), "abc", {"train": 100})
    both = DatasetDict(train=dataset, test=rows(6))
    check(load_data(both), "abc", {"train": 90, "validation": 10, "test": 6})


def test_stratified_shares_are_those_of_scikit_learn():
    labels = np.random.default_rng(0).choice(4, 400, p=[0.55, 0.25, 0.15, 0.05])
    parts = stratified_split(labels, {"validation": 0.25}, seed=3)
    _, held_out = sklearn.model_selection.train_test_split(
        labels, test_size=0.25, stratify=labels, random_state=0
    )
    ours = np.bincount(labels[parts["validation"]], minlength=4)
    assert np.abs(ours - np.bincount(held_out, minlength=4)).max() <= 1
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))


def test_small_classes_are_in_every_part_or_trained_on(caplog):
    labels = np.array([0] * 30 + [1] * 3)
    parts = stratified_split(labels, {"validation": 0.1, "test": 0.1}, seed=0)
    assert all((labels[rows] == 1).sum() == 1 for rows in parts.values())
    for few, names in ((1, ["train"]), (2, ["train", "validation"])):
        data = load_data(rows(30 + few, label=lambda i: int(i > 29), names="ab"))
        assert [s for s, d in data.splits.items() if 1 in d[:]["label"]] == names
        assert f"'b' ({few})" in caplog.text
    with pytest.raises(ResiDualError, match="2 different images are too few to give one each to"):
        load_data(rows(2, label=lambda i: i, names="ab"))
    for shares in ({"test": 0.6, "validation": 0.4}, {"test": 1.5}, {"test": -0.1}):
        with pytest.raises(ResiDualError, match="wanted shares between 0 and 1"):
            stratified_split(labels, shares, seed=0)
    for shares in ({"validation": 0.49, "test": 0.49}, {"validation": 0.8, "test": 0.1}):
        high = stratified_split(labels, shares, seed=0)  # nor does a large part starve a later one
        assert all((labels[rows] == 1).sum() == 1 for rows in high.values())


@table("columns", [("img", "fine_label"), ("webp", "cls"), ("jpg", "label")])
def test_columns_are_found_by_type_and_name(columns):
    check(load_data(rows(columns=columns), validation=0, test=0), "abc", {"train": 30})


def test_of_several_columns_the_usual_one_or_the_named_one_is_taken():
    dataset = rows(columns=("img", "fine_label"))
    dataset = dataset.add_column("coarse_label", [0] * 15 + [1] * 15)
    dataset = dataset.cast_column("coarse_label", ClassLabel(names=["x", "y"]))
    thumbnails = Dataset.from_dict({"thumbnail": [image(7)] * 30})
    dataset = concatenate_datasets([dataset, thumbnails], axis=1)
    assert load_data(dataset).class_names == ("a", "b", "c")
    data = load_data(
        dataset, label_column="coarse_label", image_column="thumbnail", validation=0, test=0
    )
    assert data.class_names == ("x", "y")
    assert values(data.train)[0] == (7, 0)
    strange = dataset.rename_columns({"img": "left", "thumbnail": "right"})
    with pytest.raises(ResiDualError, match=r"several image columns \(left, right\)"):
        load_data(strange)
    strange = dataset.rename_columns({"fine_label": "fine", "coarse_label": "coarse"})
    with pytest.raises(ResiDualError, match=r"several label columns \(fine, coarse\)"):
        load_data(strange)
    with pytest.raises(ResiDualError, match="no column 'species', only img, fine_label"):
        load_data(dataset, label_column="species")
    with pytest.raises(ResiDualError, match="cannot be both"):
        load_data(dataset, label_column="img")


def test_untyped_columns_of_text_numbers_and_bytes_are_typed():
    plain = rows()
    texts = plain.cast_column("label", Value("int64")).map(
        lambda row: {"label": "zyx"[row["label"]]},
        features=Features({"image": ImageFeature(), "label": Value("string")}),
    )
    data = load_data(texts, validation=0, test=0)
    check(data, ("x", "y", "z"), {"train": 30})
    assert data.train[:]["label"] == [2 - i % 3 for i in range(30)]
    data = load_data(texts, class_names=("z", "y", "x"), validation=0, test=0)
    assert data.train[:]["label"] == [i % 3 for i in range(30)]
    numbers = plain.cast_column("label", Value("int32"))
    with pytest.raises(ResiDualError, match="bare numbers; say what they mean with class_names"):
        load_data(numbers)
    check(
        load_data(numbers, class_names=("x", "y", "z")),
        "xyz",
        {"train": 24, "validation": 3, "test": 3},
    )


def test_class_names_can_be_replaced_by_better_ones():
    data = load_data(rows(), class_names=("ant", "bee", "cow"))
    assert data.train.features["label"].names == ["ant", "bee", "cow"]
    with pytest.raises(ResiDualError, match="has 3 classes, got 2 class names"):
        load_data(rows(), class_names=("ant", "bee"))


def test_splits_are_chosen_by_name_and_the_others_left(caplog):
    source = DatasetDict(train=rows(), extra=rows(3), corrupted=rows(3))
    with caplog.at_level(logging.INFO, "residual_peft.data"):
        assert set(load_data(source).splits) == {"train", "validation", "test"}
    assert "extra, corrupted" in caplog.text
    data = load_data(source, splits={"train": "train", "test": "corrupted"})
    assert len(data.test) == 3
    with pytest.raises(ResiDualError, match="no split 'absent', only train, extra, corrupted"):
        load_data(source, splits={"test": "absent"})
    with pytest.raises(ResiDualError, match="wanted splits for train, validation, test, got"):
        load_data(source, splits={"exam": "train"})
    with pytest.raises(ResiDualError, match="has the splits extra, corrupted; say which"):
        load_data(DatasetDict(extra=source["extra"], corrupted=source["corrupted"]))
    assert len(load_data(DatasetDict(all=rows())).splits) == 3


def bad_folder(tmp_path, kind):
    if kind == "no folders":
        image().save(tmp_path / "a.png")
        return r"found no images in .* one folder of images per class"
    write(tmp_path / "cat", 3)
    if kind == "one class":
        return r"at least two classes to tell apart, got \['cat'\]"
    if kind == "empty class":
        (tmp_path / "dog").mkdir()
        (tmp_path / "dog" / "readme.txt").write_text("none yet")
        return r"at least two classes to tell apart, got \['cat'\]"
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "cow"))):
        for name in names:
            write(tmp_path / "all" / split / name, 3)
    return "test/cow' is of the class 'cow', which the split train of"


@table("kind", ["no folders", "one class", "empty class", "unknown class"])
def test_bad_folders_are_refused(tmp_path, kind):
    message = bad_folder(tmp_path, kind)
    with pytest.raises(ResiDualError, match=message):
        load_data(tmp_path / "all" if kind == "unknown class" else tmp_path)


def test_no_images_at_all_are_refused(tmp_path):
    with pytest.raises(ResiDualError, match="found no images in"):
        load_data(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ResiDualError, match=r"found no images in any class folder.*cat"):
        load_data(tmp_path)
    (tmp_path / "file.png").touch()
    with pytest.raises(ResiDualError, match="got the file"):
        load_data(tmp_path / "file.png")
    with pytest.raises(ResiDualError, match="split train: it has no rows"):
        load_data(rows(0))


def unlabelled(label):
    """Bytes on disk can hold labels that a ClassLabel refuses to encode."""
    dataset = rows(30).cast_column("label", Value("int64"))
    labels = [i % 3 for i in range(30)]
    labels[4] = label
    return dataset.remove_columns("label").add_column("label", labels)


@table("label", [-1, 3, 99])
def test_labels_outside_the_classes_are_named_by_row(label):
    message = rf"row 4 of the dataset, split train, has the label {label}; wanted 0 to 2"
    with pytest.raises(ResiDualError, match=message):
        load_data(unlabelled(label), class_names=("a", "b", "c"))


def test_an_unlabelled_split_says_so():
    source = DatasetDict(train=rows(), test=rows(3, label=lambda i: -1))
    with pytest.raises(ResiDualError, match=r"label -1 \(as all of that split: it is unlabelled\)"):
        load_data(source)
    assert len(load_data(source, splits={"train": "train"}).test) == 3


def test_missing_and_impossible_labels_are_refused():
    with pytest.raises(ResiDualError, match="row 4 of the dataset, split train, has no label; rem"):
        load_data(unlabelled(None), class_names=("a", "b", "c"))
    pairs = [(image(), name) for name in ("a", None, "b", None, None)]
    with pytest.raises(ResiDualError, match=r"row 1 .* has no label, nor have 2 after it; remove"):
        load_data(pairs)
    features = Features({"image": ImageFeature(), "label": Sequence(Value("int64"))})
    many = Dataset.from_dict({"image": [image()], "label": [[1, 2]]}, features=features)
    with pytest.raises(ResiDualError, match="bare numbers; say what they mean with class_names"):
        load_data(many, label_column="label")
    real = many.cast_column("label", Sequence(Value("float32")))
    with pytest.raises(ResiDualError, match="or in all splits a list of them"):
        load_data(real, label_column="label")
    with pytest.raises(ResiDualError, match="no label column among image"):
        load_data(rows().remove_columns("label"))
    with pytest.raises(ResiDualError, match="no image column among label"):
        load_data(rows().remove_columns("image"))
    numbers = rows().remove_columns("image").add_column("image", list(range(30)))
    with pytest.raises(ResiDualError, match=r"holds Value.*which is no image"):
        load_data(numbers)


def test_classes_without_images_and_single_classes_are_refused():
    with pytest.raises(ResiDualError, match=r"no images of 2 of its 5 classes \('d', 'e'\)"):
        load_data(rows(names="abcde"))
    with pytest.raises(ResiDualError, match="at least two classes"):
        load_data(rows(names="a", label=lambda i: 0))
    with pytest.raises(ResiDualError, match="'a b' occurs 2 times"):
        load_data(rows(), class_names=("a_b", "a b", "c"))


def test_other_sources_are_refused():
    stream = IterableDataset.from_generator(lambda: iter([{"image": None, "label": 0}]))
    for source in (stream, 7):
        with pytest.raises(ResiDualError, match="wanted a folder, a table, a zip or tar, a Hub id"):
            load_data(source)
    with pytest.raises(ResiDualError, match=r"wanted the name of a folder, .*, got an empty one"):
        load_data("")


def test_a_folder_of_nearly_that_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for given, meant in ((str(tmp_path / "photo"), tmp_path / "photos"), ("fotos", Path("photos"))):
        monkeypatch.chdir(tmp_path)
        message = re.escape(f"it is no folder here (did you mean '{meant}'?), and the Hugging")
        with pytest.raises(ResiDualError, match=message):
            load_data(given)
        with pytest.raises(ResiDualError, match=re.escape(f"(did you mean '{meant}'?), and ")):
            ZeroShotClassifier.from_pretrained(given)


def test_an_unreachable_hub_id_says_what_could_not_be_reached():
    with pytest.raises(ResiDualError, match="could not load the data 'nobody/nothing': it is no f"):
        load_data("nobody/nothing")


def copies(tmp_path, images, names=("cat", "dog"), order=1):
    """The same images as folders, with other file names and classes in another order."""
    for i, (value, label) in enumerate(images[::order]):
        (tmp_path / names[label]).mkdir(parents=True, exist_ok=True)
        image(value).save(tmp_path / names[label] / f"{i:03}.png")
    return tmp_path


def contents(data):
    """Split -> (image, class) as a set."""
    return {split: set(values(d)) for split, d in data.splits.items()}


def test_the_same_images_give_the_same_split_by_any_name_and_door(tmp_path):
    images = [(i, int(i % 3 == 0)) for i in range(60)]
    expected = load_data(copies(tmp_path / "a", images))
    assert [len(d) for d in expected.splits.values()] == [48, 6, 6]
    backwards = load_data(copies(tmp_path / "b", images, order=-1))
    assert contents(backwards) == contents(expected)
    assert backwards.split == expected.split
    renamed = load_data(copies(tmp_path / "c", images, names=("zebra", "ant")))
    turned = {s: {(v, 1 - label) for v, label in d} for s, d in contents(expected).items()}
    assert contents(renamed) == turned
    assert renamed.split.digest != expected.split.digest
    whole = concatenate_datasets([expected.whole()[0].shuffle(seed=1)])
    (tmp_path / "hub" / "data").mkdir(parents=True)
    whole.map(batched=True).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    for source in (whole, DatasetDict(train=whole), tmp_path / "hub"):
        again = load_data(source)
        assert contents(again) == contents(expected)
        assert again.split == expected.split
    other = load_data(tmp_path / "a", seed=1)
    assert contents(other) != contents(expected)
    assert other.split.digest == expected.split.digest


def test_rows_of_several_labels_split_by_content_too():
    kind = Features({"image": ImageFeature(), "label": Sequence(ClassLabel(names=list("abc")))})
    labels = [[j for j in range(3) if (i >> j) % 3 == 0] for i in range(60)]

    def source(order, names):
        features = Features({**kind, "label": Sequence(ClassLabel(names=[*names]))})
        place = {name: names.index(name) for name in "abc"}
        return Dataset.from_dict(
            {
                "image": [image(i) for i in order],
                "label": [[place["abc"[j]] for j in labels[i]] for i in order],
            },
            features=features,
        )

    def parts(data):
        return {
            s: sorted(r["image"].getpixel((0, 0))[0] for r in d) for s, d in data.splits.items()
        }

    expected = load_data(source(range(60), "abc"))
    shuffled = np.random.default_rng(0).permutation(60).tolist()
    for order, names in ((shuffled, "abc"), (range(60), "cab")):
        again = load_data(source(order, names))
        assert parts(again) == parts(expected)
        assert again.split == expected.split


def test_copies_with_other_lists_of_labels_stay_together_in_any_order(caplog):
    kind = Features({"image": ImageFeature(), "label": Sequence(ClassLabel(names=list("abc")))})
    images = [(i, [i % 3]) for i in range(60)] + [(i, [(i + 1) % 3]) for i in range(20)]

    def parts(order):
        columns = {"image": [image(images[i][0]) for i in order]}
        columns["label"] = [images[i][1] for i in order]
        data = load_data(Dataset.from_dict(columns, kind), validation=0.2, test=0.2)
        return [sorted(row["image"].getpixel((0, 0))[0] for row in d) for d in data.splits.values()]

    expected = parts(range(80))
    assert parts(range(79, -1, -1)) == expected
    assert sum(len(set(part)) for part in expected) == 60
    assert "20 images occur with different labels: row 0 and row 60; row 1 and" in caplog.text


def test_copies_of_an_image_stay_together():
    values_, labels = [], []
    for i in range(40):
        values_ += [i] * (1 + i % 3)
        labels += [i % 2] * (1 + i % 3)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    source = Dataset.from_dict({"image": list(map(image, values_)), "label": labels}, features)
    data = load_data(source, validation=0.2, test=0.2)
    seen = [{value for value, _ in part} for part in contents(data).values()]
    assert sum(map(len, seen)) == 40
    assert [len(part) for part in seen] == [24, 8, 8]
    assert sum(map(len, data.splits.values())) == len(values_)


def test_an_image_of_two_classes_is_trained_on_and_said(caplog):
    images = [(i, i % 2) for i in range(40)] + [(i, 1 - i % 2) for i in range(15)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    columns = {"image": [image(v) for v, _ in images], "label": [label for _, label in images]}
    data = load_data(Dataset.from_dict(columns, features))
    assert {(v, label) for v in range(15) for label in (0, 1)} <= contents(data)["train"]
    said = "15 images occur with different labels; trained on, not scored: row 0 and row 40; row"
    assert said in caplog.text
    assert caplog.text.count(" and row ") == 5
    assert "exact" not in caplog.text


def test_copies_are_named_by_file_and_those_within_a_class_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "residual_peft")
    for k, name in enumerate(("cat", "dog")):
        write(tmp_path / name, 10, 100 * k)
    load_data(tmp_path)
    assert not caplog.records
    for copy in ("dog/of a cat.png", "cat/again.png", "dog/again.png"):
        (tmp_path / copy).write_bytes((tmp_path / "cat" / "03.png").read_bytes())
    (tmp_path / "cat" / "more.png").write_bytes((tmp_path / "cat" / "05.png").read_bytes())
    load_data(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "1 image occurs with different labels; trained on, not scored: "
        f"'{tmp_path}/cat/03.png' and '{tmp_path}/dog/again.png'",
        "2 images are exact copies of others with the same labels; copies stay in one split",
    ]


def test_data_in_a_notebook_are_one_line(tmp_path):
    names = [f"class {i}" for i in range(40)]
    data = load_data(rows(400, lambda i: i % 40, names))
    data = data.without("train", [0], [SkippedImage("row 0 of the split train", "broken")])
    assert (
        repr(data)
        == str(data)
        == (
            "ImageData('the dataset', 40 classes ('class 0', 'class 1', 'class 2', 'class 3', "
            "'class 4', ...), one label per image, images: train 319, validation 40, test 40, "
            "skipped: 1)"
        )
    )


def test_images_in_two_splits_are_said(caplog):
    load_data(DatasetDict(train=rows(), test=rows(6)))
    assert "6 of the 6 images of the split test of the dataset are in train as well" in caplog.text


def test_splits_of_one_meaning_are_one():
    parts = DatasetDict(
        train=rows(), val=rows(6), validation=rows(12), eval=rows(3), testing=rows(9)
    )
    data = load_data(parts)
    check(data, "abc", {"train": 30, "validation": 18, "test": 12})
    assert data.split.shares == {}
    assert data.split.images == {"train": 30, "validation": 18, "test": 12}
    assert [len(d) for d in data.digests.values()] == [30, 18, 12]


def test_the_record_says_what_was_cut():
    data = load_data(DatasetDict(train=rows(), test=rows(6)), validation=0.2, seed=3)
    assert data.split.seed == 3
    assert data.split.shares == {"validation": 0.2}
    assert data.split.images == {"train": 24, "validation": 6, "test": 6}


def test_splits_may_be_cut_later_without_reading_again():
    whole = load_data(rows(60), validation=0, test=0, seed=5)
    assert (whole.split.shares, list(whole.splits)) == ({}, ["train"])
    later = whole.cut({"validation": 0.2, "test": 0.1}, seed=5)
    at_once = load_data(rows(60), validation=0.2, test=0.1, seed=5)
    assert contents(later) == contents(at_once)
    assert (later.split, later.digests) == (at_once.split, at_once.digests)
    assert later.cut({"test": 0.5}, seed=9) is later  # what is there stays
    more = load_data(rows(60), validation=0.2, test=0).cut({"test": 0.25})
    assert more.split.shares == {"validation": 0.2, "test": 0.25}
    assert more.split.images == {"train": 36, "validation": 12, "test": 12}


def test_a_class_is_known_by_its_name_in_every_split():
    train, test = rows(), rows(6, label=lambda i: 2 - i % 3, names="cba")
    data = load_data(DatasetDict(train=train, test=test))
    assert data.test.features["label"].names == ["a", "b", "c"]
    assert data.test[:]["label"] == [i % 3 for i in range(6)]
    fewer = load_data(DatasetDict(train=train, test=rows(4, lambda i: i % 2, names="bc")))
    assert fewer.test[:]["label"] == [1, 2, 1, 2]
    with pytest.raises(ResiDualError, match="the label 'x', which is none of the classes of its"):
        load_data(DatasetDict(train=train, test=rows(4, names="xyb")))


def test_texts_in_one_split_and_names_in_another_are_the_same_classes():
    kind = Features({"image": ImageFeature(), "label": Value("string")})
    texts = Dataset.from_dict(
        {"image": [image(i) for i in range(6)], "label": list("cbacba")}, kind
    )
    data = load_data(DatasetDict(train=rows(), test=texts))
    assert data.test[:]["label"] == [2, 1, 0, 2, 1, 0]
    data = load_data(DatasetDict(train=texts, test=rows(6)), validation=0)
    assert data.test[:]["label"] == [0, 1, 2, 0, 1, 2]
    bare = rows(6).cast_column("label", Value("int64"))
    for parts in ({"train": texts, "test": bare}, {"train": bare, "test": texts}):
        with pytest.raises(ResiDualError, match=r"numbers.* without a meaning"):
            load_data(DatasetDict(parts))


def test_a_transform_is_refused_and_a_format_is_no_matter():
    source = rows()
    with pytest.raises(ResiDualError, match=r"has a transform .* which would be ignored"):
        load_data(source.with_transform(lambda batch: batch))
    data = load_data(source.with_format("numpy", columns=["label"]))
    assert contents(data) == contents(load_data(source))


def test_rows_can_be_dropped_later():
    data = load_data(rows(), validation=0, test=0)
    skipped = [SkippedImage("row 3", "broken")]
    less = data.without("train", [3, 5], skipped)
    kept = [i for i in range(30) if i not in (3, 5)]
    assert values(less.train) == [values(data.train)[i] for i in kept]
    assert less.digests["train"] == tuple(data.digests["train"][i] for i in kept)
    assert (less.split, less.skipped) == (data.split, tuple(skipped))
    assert len(data.train) == len(data.digests["train"]) == 30
    with pytest.raises(ResiDualError, match="rows of 'train' from 0 to 29"):
        data.without("train", [30])
    with pytest.raises(ResiDualError, match="no image is left in the split 'train'"):
        data.without("train", range(30))


def test_nothing_is_written_beside_saved_data(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            colour = (40 * number, 200 * (name == "cat"), 0)
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{number}.png")
    paths = [str(p) for p in sorted(folder.rglob("*.png"))]
    rows = {"image": paths, "label": [Path(p).parent.name for p in paths]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    before = sorted((tmp_path / "saved").iterdir())
    assert load_data(str(tmp_path / "saved")).class_names == ("cat", "dog")
    assert sorted((tmp_path / "saved").iterdir()) == before  # it would be believed the next time
    (tmp_path / "saved" / "state.json").write_text("[" * 100_000)
    with pytest.raises(ResiDualError, match="nested deeper than 64"):
        load_data(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").unlink()
    os.mkfifo(tmp_path / "saved" / "other.arrow")
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(ResiDualError, match=r"other\.arrow' as a plain file, got a pipe"):
        load_data(str(tmp_path / "saved"))


def test_saved_data_whose_offsets_lead_elsewhere_are_one_line(tmp_path: Path) -> None:
    """Reading it would end in a UnicodeDecodeError, or end the process."""
    write(tmp_path / "photos" / "cat", 6)
    write(tmp_path / "photos" / "dog", 6, value=200)
    paths = [str(path) for path in sorted((tmp_path / "photos").rglob("*.png"))]
    saved = Dataset.from_dict({"image": paths, "label": [Path(p).parent.name for p in paths]})
    saved.save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("data-*.arrow")
    content = bytearray(arrow.read_bytes())
    offsets = b"".join((3 * row).to_bytes(4, "little") for row in range(13))  # of the labels
    assert content.count(offsets) == 1
    place = content.index(offsets) + 4 * 5
    content[place : place + 4] = (10**6).to_bytes(4, "little")
    arrow.write_bytes(content)
    with pytest.raises(ResiDualError, match="could not load the data saved in"):
        load_data(str(tmp_path / "saved"))
