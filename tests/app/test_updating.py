"""Labelled images into a saved adapter's head and out again, by name."""

import shutil
from pathlib import Path

import pytest
import torch

from residual_peft.app import updating
from residual_peft.app.fitting import evaluate_adapter, fit_adapter
from residual_peft.app.updating import update_adapter
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.classifiers.files import STATISTICS
from residual_peft.classifiers.prompts import embed_classes
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.errors import ResiDualError
from residual_peft.hub.directories import RECORD_JSON, RUN_DIRECTORY
from tests.app.fitting.photos import NAMES, content, photos
from tests.commands import stop
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("updated")
    save_clip(folder / "model")
    photos(folder / "photos", count=16)
    report = fit(folder, folder / "adapter", keep_statistics=True)
    assert any("never pushed" in finding for finding in report.findings)
    return folder


def fit(root: Path, out: Path, **options):
    options = {"method": "ridge", "templates": ["a {}."]} | options
    return fit_adapter(str(root / "model"), str(root / "photos"), out, **options)


@pytest.fixture
def adapter(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def weights(adapter: Path) -> torch.Tensor:
    return ZeroShotClassifier.from_pretrained(adapter).head.head.weights


def test_images_come_and_go(adapter: Path, root: Path, tmp_path: Path) -> None:
    before = ZeroShotClassifier.from_pretrained(adapter)
    more = photos(tmp_path / "more", NAMES[:2], count=3, seed=9, first=100)
    shutil.copy(next((root / "photos" / "cat").glob("*.png")), more / "cat" / "old.png")
    shutil.copy(more / "dog" / "100.png", more / "dog" / "again.png")
    known = len(before.fitted_on)
    done = update_adapter(adapter, str(more))
    after = ZeroShotClassifier.from_pretrained(adapter)
    added = sum(done.changed.values())
    assert (added, done.known, done.new) in {(6, 2, ()), (7, 1, ())}  # "old" may be a test image
    assert len(after.fitted_on) == len(set(after.fitted_on)) == known + added
    assert after.statistics.sums.statistics.rows == known + added
    assert not (adapter / RUN_DIRECTORY / RECORD_JSON).exists()  # of another adapter
    assert evaluate_adapter(adapter, str(root / "photos"))["split"] == "test"
    done = update_adapter(adapter, str(more), forget=True)
    assert done.forgot
    assert "taken out" in done.lines()[0]
    left = ZeroShotClassifier.from_pretrained(adapter)
    assert left.statistics.sums.statistics.rows == len(left.fitted_on)
    assert left.head.left_out_scores is None
    with pytest.raises(ResiDualError, match="fitted on none of the"):
        update_adapter(adapter, str(more), forget=True)


def test_what_is_forgotten_leaves_no_trace_in_the_head(adapter: Path, tmp_path: Path) -> None:
    before = weights(adapter)
    more = photos(tmp_path / "more", count=3, seed=9, first=100)
    update_adapter(adapter, str(more))
    assert (weights(adapter) - before).abs().max() > 1e-3
    update_adapter(adapter, str(more), forget=True)
    torch.testing.assert_close(weights(adapter), before, rtol=1e-4, atol=1e-5)


def test_a_folder_of_a_new_class_is_one(adapter: Path, root: Path, tmp_path: Path) -> None:
    more = photos(tmp_path / "more", ("emu",), count=5, seed=9)
    done = update_adapter(adapter, str(more))
    assert done.new == ("emu",)
    made = ZeroShotClassifier.from_pretrained(adapter)
    assert made.class_names == (*NAMES, "emu")
    assert made.head.class_count == 4
    backbone = load_backbone(str(made.model.base_model.model.config._name_or_path))
    rows = embed_classes(backbone.model, backbone.tokenizer, ["emu", "cat"], ["a {}."])
    torch.testing.assert_close(made.class_embeddings[3], rows[0])
    assert "new class: emu" in done.lines()
    with pytest.raises(ResiDualError, match="fitted on all of the 5 images"):
        update_adapter(adapter, str(more))
    again = ZeroShotClassifier.from_pretrained(root / "adapter")
    with pytest.raises(ResiDualError, match="none of them empty"):
        again.add_class("", sorted(more.rglob("*.png")))
    assert again.add_class("emu", sorted(more.rglob("*.png"))) == 3
    torch.testing.assert_close(again.class_embeddings, made.class_embeddings)
    torch.testing.assert_close(again.head.head.weights, made.head.head.weights)


def test_what_cannot_be_meant_is_refused(adapter: Path, root: Path, tmp_path: Path) -> None:
    more = photos(tmp_path / "more", ("Cat",), count=2, seed=9)
    with pytest.raises(ResiDualError, match="a class 'Cat', the adapter 'cat'"):
        update_adapter(adapter, str(more))
    other = photos(tmp_path / "other", ("emu",), count=2, seed=9)
    with pytest.raises(ResiDualError, match="classes to forget, got some of 'emu'"):
        update_adapter(adapter, str(other), forget=True)
    (adapter / STATISTICS).unlink()
    with pytest.raises(ResiDualError, match=r"has no statistics.*--keep-statistics"):
        update_adapter(adapter, str(more))
    for bad in ({"method": "gains"}, {"method": "auto", "trainer": True}):
        with pytest.raises(ResiDualError, match="updated by are of a ridge"):
            fit(root, tmp_path / "no", keep_statistics=True, **bad)
    with pytest.raises(ResiDualError, match="True, False or 'per class'"):
        fit(root, tmp_path / "no", keep_statistics="all")


def test_a_fit_without_them_leaves_none_of_an_earlier_one(adapter: Path, root: Path) -> None:
    fit(root, adapter, method="ridge-embedding")
    assert not (adapter / STATISTICS).exists()


def test_per_class_a_class_goes_without_its_images(root: Path, tmp_path: Path, caplog) -> None:
    fit(root, tmp_path / "a", method="ridge-embedding", keep_statistics="per class")
    made = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    with caplog.at_level("INFO"):
        made.remove_class("dog")
    assert made.class_names == ("cat", "owl")
    assert "the images of 'dog' still count as known" in caplog.text
    done = updating.remove_class(tmp_path / "a", "dog")
    assert done.lines() == ["class removed: dog"]
    torch.testing.assert_close(weights(tmp_path / "a"), made.head.head.weights)


def test_a_class_goes_with_its_images(adapter: Path, root: Path, tmp_path: Path) -> None:
    made = ZeroShotClassifier.from_pretrained(adapter)
    data = load_data(root / "photos", validation=0, test=0)  # test images among them
    dog = [row for row, label in enumerate(data.train["label"]) if data.class_names[label] == "dog"]
    assert made.statistics is not None  # read while it is there
    fitted = [row for row in dog if data.digests["train"][row] in made.fitted_on]
    before = content(adapter)
    wrong = photos(tmp_path / "other", ("dog",), count=2, seed=9)
    for name, given, message in (
        ("dog", None, "wanted the .* images of class .*, got 0: .*--keep-statistics-per-class"),
        ("emu", root / "photos", "class of the adapter to remove, cat, dog, owl, got 'emu'"),
        ("dog", wrong, "fitted on none of the 2 images of 'dog' in .*: nothing was removed"),
        ("dog", data.train.select(fitted[1:]), "wanted the .* images of class .* to take out"),
        ("dog", root / "photos" / "cat", "found no images"),
    ):
        with pytest.raises(ResiDualError, match=message):
            updating.remove_class(adapter, name, given)
        assert content(adapter) == before, message
    done = updating.remove_class(adapter, "dog", root / "photos")
    after = ZeroShotClassifier.from_pretrained(adapter)
    assert (done.changed, done.removed, done.known) == (
        {"dog": len(fitted)},
        "dog",
        len(dog) - len(fitted),
    )
    assert after.class_names == ("cat", "owl")
    assert len(after.fitted_on) == len(made.fitted_on) - len(fitted)
    made.remove_class("dog", data.train.select(fitted))
    torch.testing.assert_close(after.head.head.weights, made.head.head.weights)


def test_the_command(adapter: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    more = photos(tmp_path / "more", (*NAMES[:1], "emu"), count=2, seed=9)
    assert stop(monkeypatch, "update", str(adapter), "--data", str(more)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["4 images added: 2 cat, 2 emu", "new class: emu"]
    assert stop(monkeypatch, "update", str(adapter), "--data", str(more), "--forget") == 2
    assert "got none of class 'emu'" in capsys.readouterr().err
    for number, file in enumerate(sorted(more.rglob("*.png"))[:3]):
        file.rename(more / "cat" / f"{number}.png").write_text("broken")
    shutil.rmtree(more / "emu")
    before = content(adapter)
    for given, message in (
        ([], "give --data or --remove-class"),
        (["--forget", "--remove-class", "cat"], "--forget or --remove-class, got both"),
        (["--remove-class", "cat"], "wanted the "),
    ):
        assert stop(monkeypatch, "update", str(adapter), *given) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert stop(monkeypatch, "update", str(adapter), "--data", str(more)) == 2
    assert "none of the 3 of " in (line := capsys.readouterr().err.splitlines()[-1])
    assert "can be read, so nothing was done; the first is " in line
    assert content(adapter) == before
