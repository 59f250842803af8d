"""No door measures an adapter on images that it was trained on without saying so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from residual_peft import ZeroShotClassifier, load_data
from residual_peft.app.fitting import FitReport, choose_images, evaluate_adapter, fit_adapter
from residual_peft.app.updating import update_adapter
from residual_peft.data.metrics import accuracy_interval
from residual_peft.data.provenance import image_digest
from residual_peft.errors import ResiDualError
from tests.app.fitting.photos import NAMES, photos
from tests.commands import stop
from tests.training_case import save_clip

SEED = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    save_clip(folder / "model")
    photos(folder / "photos")
    photos(folder / "new", count=10, seed=1)
    return folder


@pytest.fixture(scope="module")
def report(root: Path) -> FitReport:
    return fit_adapter(
        str(root / "model"),
        str(root / "photos"),
        root / "a",
        templates=["a {}."],
        seed=SEED,
        method="gains",
    )


@pytest.fixture(scope="module")
def classifier(root: Path, report: FitReport) -> ZeroShotClassifier:
    return ZeroShotClassifier.from_pretrained(root / "a")


def digests(images) -> list[str]:
    """Of the files that images were read from."""
    return [image_digest(Path(row["image"]["path"]).read_bytes()) for row in images.dataset]


def test_eval_takes_the_seed_of_the_fit(root, report, classifier) -> None:
    found = evaluate_adapter(root / "a", str(root / "photos"))
    assert found["accuracy"] == report.adapted["accuracy"]
    assert (found["images"], found["split"]) == (report.splits["test"], "test") == (6, "test")
    assert found["data"] == "the data of its fit"
    assert found["left_out_as_trained_on"] == found["skipped_as_unreadable"] == 0
    right = round(found["accuracy"] * 6)
    assert found["accuracy_interval"] == pytest.approx(list(accuracy_interval(right, 6)))
    chosen = digests(choose_images(classifier, str(root / "photos")).images)
    data = load_data(str(root / "photos"), seed=SEED)
    assert chosen == list(data.digests["test"])
    assert set(classifier.fitted_on) == {*data.digests["train"], *data.digests["validation"]}
    assert not set(chosen) & set(classifier.fitted_on)
    assert classifier.split == data.split


@pytest.mark.parametrize("trainer", [False, True])
def test_every_way_of_fitting_says_which_images_it_took(trainer, root, tmp_path) -> None:
    fit_adapter(
        str(root / "model"), str(root / "photos"), tmp_path / "a", templates=["a {}."],
        trainer=trainer, seed=SEED + 1, method="gains")  # fmt: skip
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    chosen = digests(choose_images(classifier, str(root / "photos")).images)
    assert chosen == list(load_data(str(root / "photos"), seed=SEED + 1).digests["test"])
    assert len(chosen) == 6
    assert len(classifier.fitted_on) == 54
    assert not set(chosen) & set(classifier.fitted_on)


def test_another_seed_is_refused_for_the_data_of_the_fit_alone(root, report) -> None:
    with pytest.raises(ResiDualError, match="split with seed 7; with seed 42 it would be measured"):
        evaluate_adapter(root / "a", str(root / "photos"), seed=42)
    own = evaluate_adapter(root / "a", str(root / "photos"), seed=SEED)
    assert own["accuracy"] == report.adapted["accuracy"]
    assert evaluate_adapter(root / "a", str(root / "new"), seed=42)["images"] == 30
    split = load_data(str(root / "photos"), seed=3)
    with pytest.raises(ResiDualError, match=r"split in another way \(seed 3, .* its fit \(seed 7"):
        evaluate_adapter(root / "a", split)


def test_the_same_images_under_other_names_are_the_data_of_the_fit(
    root, report, classifier, tmp_path
) -> None:
    for name in NAMES:
        (tmp_path / "moved" / name).mkdir(parents=True)
        for index, path in enumerate(sorted((root / "photos" / name).iterdir(), reverse=True)):
            shutil.copy(path, tmp_path / "moved" / name / f"picture-{index}.png")
    chosen = choose_images(classifier, str(tmp_path / "moved"))
    assert chosen.data_of_fit
    assert sorted(digests(chosen.images)) == sorted(
        digests(choose_images(classifier, str(root / "photos")).images)
    )
    again = evaluate_adapter(root / "a", str(tmp_path / "moved"))
    assert again["accuracy"] == report.adapted["accuracy"]


def test_other_data_are_used_whole(root, classifier, caplog) -> None:
    chosen = choose_images(classifier, str(root / "new"))
    assert (len(chosen), chosen.split, chosen.data_of_fit, chosen.left_out) == (30, "all", False, 0)
    assert len(set(digests(chosen.images))) == 30
    assert not caplog.messages
    assert evaluate_adapter(root / "a", str(root / "new"))["images"] == 30


def test_images_that_were_trained_on_are_left_out_of_other_data(
    root, classifier, tmp_path, caplog
) -> None:
    shutil.copytree(root / "new", tmp_path / "mixed")
    for number, path in enumerate(sorted((root / "photos").rglob("*.png"))):
        shutil.copy(path, tmp_path / "mixed" / path.parent.name / f"old-{number}.png")
    chosen = choose_images(classifier, str(tmp_path / "mixed"))
    assert (len(chosen), chosen.left_out, chosen.data_of_fit) == (36, 54, False)
    assert not set(digests(chosen.images)) & set(classifier.fitted_on)
    assert "54 images of 90 left out: the adapter was trained or chosen on them." in caplog.messages
    found = evaluate_adapter(root / "a", str(tmp_path / "mixed"), split="test")
    assert found["left_out_as_trained_on"] + found["images"] == 9


def test_nothing_is_scored_where_all_was_trained_on(root, classifier, tmp_path) -> None:
    for path in (root / "photos").rglob("*.png"):
        if image_digest(path.read_bytes()) in classifier.fitted_on:
            (tmp_path / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / path.parent.name)
    with pytest.raises(ResiDualError, match="trained or chosen on all 54 images of"):
        choose_images(classifier, str(tmp_path))


def test_splits_of_the_own_data_by_name(root, classifier) -> None:
    for split, count, trained in (("train", 48, 48), ("validation", 6, 6), ("test", 6, 0)):
        chosen = choose_images(classifier, str(root / "photos"), split=split)
        assert (len(chosen), chosen.trained_on, chosen.left_out) == (count, trained, 0)
    whole = choose_images(classifier, str(root / "photos"), split="all")
    assert (len(whole), whole.left_out, whole.split) == (6, 54, "all")
    with pytest.raises(ResiDualError, match="train, validation, test or all, got 'exam'"):
        choose_images(classifier, str(root / "photos"), split="exam")


def without_record(root: Path, tmp_path: Path, *, split: bool = True) -> ZeroShotClassifier:
    """The adapter as it would be without what `fit` left of its images."""
    adapter = Path(shutil.copytree(root / "a", tmp_path / "adapter"))
    shutil.rmtree(adapter / "run")
    if split:
        path = adapter / "residual_classifier.json"
        record = json.loads(path.read_text())
        del record["split"]
        path.write_text(json.dumps(record))
    return ZeroShotClassifier.from_pretrained(adapter)


def test_an_adapter_that_does_not_say_is_measured_as_all_doors_would(
    root, report, tmp_path, caplog
) -> None:
    chosen = choose_images(without_record(root, tmp_path), str(root / "photos"))
    assert "does not say how the images of its fit were shared out" in caplog.messages[-1]
    assert (chosen.data_of_fit, chosen.split, chosen.left_out) == (None, "test", 0)
    assert digests(chosen.images) == list(load_data(str(root / "photos")).digests["test"])


def test_an_adapter_from_the_hub_knows_its_split_and_not_its_images(
    root, report, tmp_path, caplog
) -> None:
    pushed = without_record(root, tmp_path, split=False)  # run/ stays at home
    chosen = choose_images(pushed, str(root / "photos"))
    assert digests(chosen.images) == list(
        load_data(str(root / "photos"), seed=SEED).digests["test"]
    )
    assert not caplog.messages
    whole = choose_images(pushed, str(root / "photos"), split="all")
    assert (len(whole), whole.left_out) == (6, 54)
    caplog.clear()
    choose_images(pushed, str(root / "new"))
    assert "which images it was fitted on is not known here" in caplog.messages[-1]


@pytest.mark.parametrize("names", [("dog",), ("owl", "cat")])
def test_fewer_classes_are_scored_by_name(names, root, classifier, tmp_path) -> None:
    folder = photos(tmp_path / "few", names, count=8, seed=5)
    found = evaluate_adapter(root / "a", str(folder))
    assert found["images"] == 8 * len(names)
    right = [
        classifier.predict(path).label == path.parent.name for path in sorted(folder.rglob("*.png"))
    ]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_two_photos_are_enough_to_be_scored(root, classifier, tmp_path, caplog) -> None:
    folder = photos(tmp_path / "two", ("dog",), count=2, seed=6)
    assert len(choose_images(classifier, str(folder))) == 2
    assert not caplog.messages  # nothing is cut, so no class is too small for it
    with pytest.raises(ResiDualError, match="2 different images are too few to give one each"):
        choose_images(classifier, str(folder), split="test")


def rows(folder: Path, labels: list, feature) -> Dataset:
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    data = Dataset.from_dict({"image": paths, "label": labels}).cast_column("image", Image())
    return data.cast_column("label", feature)


def test_other_orders_bare_numbers_and_unused_names(root, report, tmp_path) -> None:
    folder = photos(tmp_path / "more", count=6, seed=9)
    truth = evaluate_adapter(root / "a", str(folder))
    numbers = [0] * 6 + [1] * 6 + [2] * 6
    turned = rows(folder, [2 - n for n in numbers], ClassLabel(names=["owl", "dog", "cat"]))
    bare = rows(folder, numbers, Value("int64"))
    unused = rows(folder, [n + 1 for n in numbers], ClassLabel(names=["bee", *NAMES, "yak"]))
    for data in (turned, bare, unused):
        assert evaluate_adapter(root / "a", data) == truth
    strange = rows(folder, [n + 1 for n in numbers], ClassLabel(names=["cat", "cow", "dog", "ant"]))
    with pytest.raises(ResiDualError, match=r"\(cat, dog, owl\), got images of cow, ant, which it"):
        evaluate_adapter(root / "a", strange)
    lists = Dataset.from_dict({"image": turned["image"], "label": [["cat"]] * 18})
    with pytest.raises(ResiDualError, match=r"wanted one label per image.*several labels"):
        evaluate_adapter(root / "a", lists)


def test_a_test_image_that_is_a_training_image_is_no_test(root, tmp_path, caplog) -> None:
    photos(tmp_path / "data" / "train", count=12)
    photos(tmp_path / "data" / "test", count=6, seed=4)
    for number, path in enumerate(sorted((tmp_path / "data" / "train" / "cat").iterdir())[:2]):
        shutil.copy(path, tmp_path / "data" / "test" / "cat" / f"copy-{number}.png")
    report = fit_adapter(
        str(root / "model"),
        str(tmp_path / "data"),
        tmp_path / "a",
        templates=["a {}."],
        method="gains",
    )
    assert (report.repeated, report.splits["test"]) == (2, 18)
    assert "2 test images left out of the score: trained on as well" in report.lines()
    found = evaluate_adapter(tmp_path / "a", str(tmp_path / "data"))
    assert (found["images"], found["left_out_as_trained_on"]) == (18, 2)
    assert found["accuracy"] == report.adapted["accuracy"]
    shutil.rmtree(tmp_path / "data" / "test")
    shutil.copytree(tmp_path / "data" / "train", tmp_path / "data" / "test")
    with pytest.raises(ResiDualError, match=r"all 36 test images of .* are training or validation"):
        fit_adapter(str(root / "model"), str(tmp_path / "data"), tmp_path / "b", method="gains")


def test_several_labels_are_found_by_name(tmp_path: Path, root: Path) -> None:
    folder = photos(tmp_path / "several", count=20)
    names = ["big", "round", "wild"]
    texts = [[n for i, n in enumerate(names) if (index + 1) >> i & 1] for index in range(60)]
    texts = [texts[index % 7] for index in range(60)]
    paths = [str(path) for path in sorted(folder.rglob("*.png"))]
    data = Dataset.from_dict({"image": paths, "label": texts}).cast_column("image", Image())
    report = fit_adapter(
        str(root / "model"), data, tmp_path / "a", templates=["a {}."], method="gains"
    )
    assert (tmp_path / "a" / "run" / "fitted_on.txt").is_file()
    assert (tmp_path / "a" / "run" / "run.json").exists()
    own = evaluate_adapter(tmp_path / "a", data)
    assert own["images"] == report.splits["test"] > 0
    assert own["mean_average_precision"] == pytest.approx(report.adapted["mean_average_precision"])
    assert "accuracy_interval" not in own
    fresh = photos(tmp_path / "fresh", count=6, seed=8)
    paths = [str(path) for path in sorted(fresh.rglob("*.png"))]
    lists = [["wild"], ["big", "wild"], []] * 6
    fewer = Dataset.from_dict({"image": paths, "label": lists}).cast_column("image", Image())
    found = evaluate_adapter(tmp_path / "a", fewer)
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    logits = classifier.predict_logits(paths)
    truth = torch.tensor([[int(n in ls) for n in classifier.class_names] for ls in lists])
    assert found["images"] == 18
    assert found["exact_match"] == pytest.approx(
        float(((logits >= 0) == truth.bool()).all(1).double().mean())
    )


def test_the_command_lines_numbers(root, report, tmp_path, monkeypatch, capsys) -> None:
    given = (str(root / "a"), "--data")
    assert stop(monkeypatch, "eval", *given, str(root / "photos")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == report.adapted["accuracy"]
    assert (found["images"], found["split"]) == (6, "test")
    assert stop(monkeypatch, "eval", *given, str(root / "photos"), "--seed", "42") == 2
    assert "Leave the seed out" in capsys.readouterr().err.splitlines()[-1]
    assert stop(monkeypatch, "eval", *given, str(root / "photos"), "--split", "all") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["left_out_as_trained_on"] == 54
    assert "note: 54 images of 60 left out" in captured.err
    assert stop(monkeypatch, "explain", *given, str(root / "new")) == 0
    assert "change of the logits of 30 images" in capsys.readouterr().out
    out = str(tmp_path / "all.json")
    assert stop(monkeypatch, "explain", *given, str(root / "photos"), "--out", out) == 0
    assert json.loads(Path(out).read_text())["split"] == "test"
    assert json.loads(Path(out).read_text())["images"] == 6


def test_splits_that_the_data_came_with_need_no_seed(root, tmp_path) -> None:
    photos(tmp_path / "data" / "train", count=12)
    photos(tmp_path / "data" / "val", count=4, seed=3)
    photos(tmp_path / "data" / "test", count=5, seed=4)
    report = fit_adapter(
        str(root / "model"),
        str(tmp_path / "data"),
        tmp_path / "a",
        templates=["a {}."],
        method="gains",
    )
    found = evaluate_adapter(tmp_path / "a", str(tmp_path / "data"), seed=42)
    assert (found["images"], found["accuracy"]) == (15, report.adapted["accuracy"])
    parts = DatasetDict(load_data(str(tmp_path / "data")).splits)
    assert evaluate_adapter(tmp_path / "a", parts) == found


def test_the_own_data_without_their_groups_are_refused(root, tmp_path) -> None:
    """Else it would be measured on images that it was trained on, and nothing would say so."""
    lines = ["file_name,label,patient"]
    for path in sorted((root / "photos").rglob("*.png")):
        place = path.relative_to(root)
        lines.append(f"{place},{path.parent.name},p{int(path.stem) // 3}")
    (root / "grouped.csv").write_text("\n".join(lines) + "\n")
    options = {"method": "ridge-embedding", "group_column": "patient", "templates": ["a {}."]}
    fit_adapter(str(root / "model"), str(root / "grouped.csv"), tmp_path / "a", **options)
    shutil.rmtree(tmp_path / "a" / "run")  # as it comes from the Hub
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    with pytest.raises(ResiDualError, match=r"by the groups in 'patient', and .* with that column"):
        choose_images(loaded, str(root / "photos"))
    chosen = choose_images(loaded, str(root / "grouped.csv"))
    assert chosen.data_of_fit is True
    assert loaded.split.tested != ""
    loaded.split = replace(loaded.split, tested="0" * 32)
    with pytest.raises(ResiDualError, match="some that it was trained on"):
        choose_images(loaded, str(root / "grouped.csv"))


def test_test_images_that_an_update_may_have_added_are_said(root, tmp_path, caplog) -> None:
    options = {"method": "ridge-embedding", "keep_statistics": True, "templates": ["a {}."]}
    fit_adapter(str(root / "model"), str(root / "photos"), tmp_path / "a", **options)
    before = len(ZeroShotClassifier.from_pretrained(tmp_path / "a").fitted_on)
    update_adapter(tmp_path / "a", str(root / "photos"), num_workers=0)  # its test images
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert len(loaded.fitted_on) > before
    with pytest.raises(ResiDualError, match="trained or chosen on all"):
        choose_images(loaded, str(root / "photos"))
    shutil.rmtree(tmp_path / "a" / "run")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    caplog.clear()
    assert choose_images(loaded, str(root / "photos")).data_of_fit is True
    assert "learned from more images after its fit" in caplog.text
