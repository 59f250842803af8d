"""From names to an adapter on disk, and from an adapter on disk to its scores."""

from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, DatasetDict, Value

from residual_peft.errors import ResiDualError
from residual_peft.fitting import FitReport, evaluate_adapter, fit_adapter
from residual_peft.tuner import ResiDualConfig, gains_of
from residual_peft.zero_shot import ZeroShotClassifier

from .training_case import NAMES, save_clip
from .training_case import task as images


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_clip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return images(120).splits


def gains(folder: Path) -> torch.Tensor:
    return gains_of(ZeroShotClassifier.from_pretrained(folder).model).detach()


@pytest.fixture(scope="module")
def fitted(model: str, splits: DatasetDict, tmp_path_factory) -> tuple[Path, FitReport]:
    out = tmp_path_factory.mktemp("out") / "adapter"
    return out, fit_adapter(model, splits, out, templates=["a {}."])


def test_the_scores_are_those_of_the_adapter_on_disk(fitted, model, splits) -> None:
    out, scores = fitted
    assert evaluate_adapter(out, splits)["accuracy"] == scores.adapted["accuracy"]
    assert scores.adapted["accuracy"] > scores.zero_shot["accuracy"] + 0.1
    loaded = ZeroShotClassifier.from_pretrained(out)
    assert loaded.class_names == NAMES
    assert loaded.templates == ("a {}.",)
    assert not gains_of(loaded.model).eq(1).all()
    config = loaded.model.peft_config["default"]
    assert config.num_samples == len(splits["train"])
    with loaded.model.disable_adapter():
        right = [loaded.predict(row["image"]).index == row["label"] for row in splits["test"]]
    assert sum(right) / len(right) == pytest.approx(scores.zero_shot["accuracy"])


def test_any_split_can_be_measured(fitted, splits) -> None:
    out, _ = fitted
    found = evaluate_adapter(out, splits, split="train")
    assert set(found) == {"accuracy", "top5_accuracy", "mean_per_class_recall"}
    assert found["top5_accuracy"] == 1  # of three classes
    with pytest.raises(ResiDualError, match="has no split 'exam', only train, validation, test"):
        evaluate_adapter(out, splits, split="exam")


def test_the_test_images_choose_nothing(fitted, model, splits, tmp_path: Path) -> None:
    out, scores = fitted
    wrong = splits["test"].map(lambda row: {"label": (row["label"] + 1) % 3})
    other = DatasetDict(splits | {"test": wrong})
    changed = fit_adapter(model, other, tmp_path / "adapter", templates=["a {}."])
    assert changed.adapted["accuracy"] != scores.adapted["accuracy"]
    assert torch.equal(gains(tmp_path / "adapter"), gains(out))


def test_the_config_and_the_seed_are_taken(fitted, model, splits, tmp_path: Path) -> None:
    config = ResiDualConfig.paper("coarse", seed=4)
    fit_adapter(model, splits, tmp_path / "a", templates=["a {}."], config=config)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a").model.peft_config["default"]
    assert (loaded.granularity, loaded.seed) == ("unit", 4)
    fit_adapter(model, splits, tmp_path / "b", templates=["a {}."])
    assert torch.equal(gains(tmp_path / "b"), gains(fitted[0]))  # nothing is drawn at random


def test_the_trainers_way(fitted, model, splits, tmp_path: Path) -> None:
    report = fit_adapter(model, splits, tmp_path / "a", templates=["a {}."], trainer=True)
    assert evaluate_adapter(tmp_path / "a", splits)["accuracy"] == report.adapted["accuracy"]
    assert report.zero_shot == fitted[1].zero_shot
    assert report.adapted["accuracy"] > report.zero_shot["accuracy"] + 0.1
    assert report.strength is None
    assert fitted[1].strength is not None
    assert min(report.encoding_seconds, report.fitting_seconds, fitted[1].fitting_seconds) > 0
    stream = ResiDualConfig(mode="stream")
    with pytest.raises(ResiDualError, match=r"no coordinates to fit from; use trainer=True"):
        fit_adapter(model, splits, tmp_path / "b", templates=["a {}."], config=stream)
    fit_adapter(model, splits, tmp_path / "b", templates=["a {}."], config=stream, trainer=True)
    assert (tmp_path / "b" / "adapter_model.safetensors").is_file()


def test_other_classes_are_refused(fitted, splits) -> None:
    names = ClassLabel(names=["black", "grey", "white"])
    renamed = DatasetDict(
        {
            name: split.cast_column("label", Value("int64")).cast_column("label", names)
            for name, split in splits.items()
        }
    )
    with pytest.raises(ResiDualError, match=r"classes \(dark, grey, light\), got black, grey, whi"):
        evaluate_adapter(fitted[0], renamed)


def test_a_bad_fit_writes_nothing(model, splits, tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match=r"has no '\{\}' where the class name goes"):
        fit_adapter(model, splits, tmp_path / "out", templates=["a photo"])
    with pytest.raises(ResiDualError, match="could not find the model 'nobody/nothing'"):
        fit_adapter("nobody/nothing", splits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
