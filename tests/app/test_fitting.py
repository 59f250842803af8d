"""From names to an adapter on disk, and from an adapter on disk to its scores."""

import re
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, DatasetDict, Value

from residual_peft.app.fitting import FitReport, evaluate_adapter, fit_adapter
from residual_peft.app.recording import changed_rows
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.data import load_data
from residual_peft.data.pictures import thumbnail
from residual_peft.errors import ResiDualError
from residual_peft.reporting.run_record import RunRecord
from residual_peft.tuner import ResiDualConfig, gains_of
from tests.training_case import NAMES, save_clip
from tests.training_case import task as images


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
    return out, fit_adapter(model, splits, out, templates=["a {}."], method="gains")


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
    share = next(note for note in scores.findings if note.startswith("classes are their texts"))
    assert re.search(r"with [1-9]\d* % of the means of their images", share)


def test_any_split_can_be_measured(fitted, splits) -> None:
    out, _ = fitted
    found = evaluate_adapter(out, splits, split="train")
    assert {"accuracy", "top5_accuracy", "mean_per_class_recall"} < set(found)
    assert found["images"] == found["trained_on"] == len(splits["train"])
    assert found["top5_accuracy"] == 1  # of three classes
    with pytest.raises(
        ResiDualError, match="wanted the split train, validation, test or all, got 'exam'"
    ):
        evaluate_adapter(out, splits, split="exam")


def test_the_test_images_choose_nothing(fitted, model, splits, tmp_path: Path) -> None:
    out, scores = fitted
    wrong = splits["test"].map(lambda row: {"label": (row["label"] + 1) % 3})
    other = DatasetDict(splits | {"test": wrong})
    changed = fit_adapter(model, other, tmp_path / "adapter", templates=["a {}."], method="gains")
    assert changed.adapted["accuracy"] != scores.adapted["accuracy"]
    assert torch.equal(gains(tmp_path / "adapter"), gains(out))


def test_the_config_and_the_seed_are_taken(fitted, model, splits, tmp_path: Path) -> None:
    config = ResiDualConfig.paper("coarse", seed=4)
    fit_adapter(model, splits, tmp_path / "a", templates=["a {}."], config=config, method="gains")
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "a").model.peft_config["default"]
    assert (loaded.granularity, loaded.seed) == ("unit", 4)
    record = RunRecord.load(tmp_path / "a").gains
    assert torch.equal(record.gains, gains(tmp_path / "a"))
    assert set(record.counts) == {1}
    assert record.eigenvalues is None
    (tmp_path / "a" / "report.html").write_text("of an earlier fit")
    fit_adapter(model, splits, tmp_path / "a", templates=["a {}."], method="gains")
    assert torch.equal(gains(tmp_path / "a"), gains(fitted[0]))  # nothing is drawn at random
    assert not (tmp_path / "a" / "report.html").exists()


def test_the_trainers_way(fitted, model, splits, tmp_path: Path) -> None:
    report = fit_adapter(model, splits, tmp_path / "a", templates=["a {}."], trainer=True)
    assert evaluate_adapter(tmp_path / "a", splits)["accuracy"] == report.adapted["accuracy"]
    assert report.zero_shot == fitted[1].zero_shot
    assert report.adapted["accuracy"] > report.zero_shot["accuracy"] + 0.1
    assert report.strength is None
    assert fitted[1].strength is not None
    assert min(report.encoding_seconds, report.fitting_seconds, fitted[1].fitting_seconds) > 0
    found = RunRecord.load(tmp_path / "a")
    assert float((found.after.argmax(1) == found.labels).double().mean()) == pytest.approx(
        report.adapted["accuracy"]
    )
    assert torch.equal(found.gains.gains, gains(tmp_path / "a"))
    stream = ResiDualConfig(mode="stream")
    with pytest.raises(ResiDualError, match=r"no coordinates to fit from; use trainer=True"):
        fit_adapter(
            model, splits, tmp_path / "b", templates=["a {}."], config=stream, method="gains"
        )
    fit_adapter(model, splits, tmp_path / "b", templates=["a {}."], config=stream, trainer=True)
    assert (tmp_path / "b" / "adapter_model.safetensors").is_file()
    assert RunRecord.load(tmp_path / "b").gains is None
    assert RunRecord.load(tmp_path / "b").facts.trained > 0


def test_a_fit_leaves_a_record_of_itself(fitted, splits) -> None:
    out, report = fitted
    found = RunRecord.load(out)
    assert found.class_names == NAMES
    assert found.labels.tolist() == splits["test"]["label"]
    for logits, metrics in ((found.before, report.zero_shot), (found.after, report.adapted)):
        right = (logits.argmax(1) == found.labels).double().mean()
        assert float(right) == pytest.approx(metrics["accuracy"])
    assert torch.equal(found.gains.gains, gains(out))
    assert float(found.gains.share.sum()) + found.gains.rescaling_share == pytest.approx(1)
    assert found.gains.settings_share == 0
    assert found.facts.trained == len(gains(out))
    assert found.facts.splits == {name: len(split) for name, split in splits.items()}
    assert found.facts.images_read == len(splits["train"]) + len(splits["validation"])
    tensors = [path.stat().st_size for path in out.glob("*.safetensors")]
    assert (found.facts.adapter_bytes, len(tensors)) == (sum(tensors), 2)
    assert (found.facts.encoding_seconds, found.facts.strength) == (
        report.encoding_seconds,
        report.strength,
    )


def test_words_are_asked_for_found_or_left_out(fitted, model, splits, tmp_path: Path) -> None:
    assert RunRecord.load(fitted[0]).words == ()  # its text tower is too small for the bundled list
    report = fit_adapter(
        model, splits, tmp_path / "a", templates=["a {}."], words=["abc", "fgh"], method="gains"
    )
    assert report.adapted == fitted[1].adapted
    found = RunRecord.load(tmp_path / "a").words
    assert len(found) == 12
    assert {text for item in found for text, _ in item.texts} == {"abc", "fgh"}
    with pytest.raises(ResiDualError, match="one text a line at"):
        fit_adapter(
            model, splits, tmp_path / "b", templates=["a {}."], words="none.txt", method="gains"
        )
    assert not (tmp_path / "b").exists()


def test_the_record_shows_the_images_that_changed_side(fitted, splits) -> None:
    found = RunRecord.load(fitted[0])
    was, now = (logits.argmax(1) == found.labels for logits in (found.before, found.after))
    rows = [example.row for example in found.examples]
    assert (was[rows] != now[rows]).all()
    for side in (now & ~was, was & ~now):
        assert sum(bool(side[row]) for row in rows) == min(12, int(side.sum()))
    assert [bool(now[row]) for row in rows] == sorted(
        (bool(now[row]) for row in rows), reverse=True
    )
    for example in found.examples:
        assert example.image == thumbnail(splits["test"][example.row]["image"])


def test_a_record_says_nothing_of_anybodys_directories(fitted, model) -> None:
    text = (fitted[0] / "run" / "run.json").read_text()
    assert str(fitted[0].parent) not in text
    assert str(Path(model).parent) not in text
    assert RunRecord.load(fitted[0]).facts.base_model == Path(model).name


def test_the_largest_changes_come_first() -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    before = torch.tensor([[0.0, 1], [0, 5], [0, 2], [5, 0], [1, 0], [2, 0]])
    after = torch.tensor([[1.0, 0], [5, 0], [2, 0], [0, 5], [0, 1], [3, 0]])
    assert changed_rows(before, after, labels) == [1, 2, 0, 3, 4]
    assert changed_rows(before, after, labels, limit=1) == [1, 3]
    assert changed_rows(before, before, labels) == []


def test_other_classes_are_refused(fitted, splits) -> None:
    names = ClassLabel(names=["black", "grey", "white"])
    renamed = DatasetDict(
        {
            name: split.cast_column("label", Value("int64")).cast_column("label", names)
            for name, split in splits.items()
        }
    )
    with pytest.raises(
        ResiDualError, match=r"classes \(dark, grey, light\), got images of black, wh"
    ):
        evaluate_adapter(fitted[0], renamed)


def test_a_missing_split_is_told_before_any_work(splits, tmp_path: Path) -> None:
    cases = {"validation": "stops by validation images", "test": "has no split 'test'"}
    for gone, message in cases.items():
        data = load_data(DatasetDict(train=splits["train"]), **{gone: 0})
        with pytest.raises(ResiDualError, match=message):
            fit_adapter("nobody/nothing", data, tmp_path / "out", trainer=True)


def test_words_that_nothing_would_show_are_refused(model, splits, tmp_path: Path) -> None:
    for config in (ResiDualConfig(mode="stream"), ResiDualConfig.paper("coarse")):
        with pytest.raises(ResiDualError, match="words are for the components of a report"):
            fit_adapter(
                model, splits, tmp_path / "out", config=config, trainer=True, words=["a", "b"]
            )


def test_a_bad_fit_writes_nothing(model, splits, tmp_path: Path) -> None:
    with pytest.raises(ResiDualError, match=r"has no '\{\}' where the class name goes"):
        fit_adapter(model, splits, tmp_path / "out", templates=["a photo"], method="gains")
    with pytest.raises(ResiDualError, match="could not find the model 'nobody/nothing'"):
        fit_adapter("nobody/nothing", splits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
