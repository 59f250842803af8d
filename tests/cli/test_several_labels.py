"""Several labels per image from the command line, and what is for one label only."""

import json
from pathlib import Path

import pytest
from datasets import DatasetDict

from residual_peft import ResiDualError, ZeroShotClassifier, collect_coordinates, load_data
from residual_peft.analysis import explain_adapter
from residual_peft.app.fitting import fit_adapter
from residual_peft.app.studies import study_model
from residual_peft.data import batches
from tests.commands import stop
from tests.labelled_pictures import images
from tests.training_case import save_clip


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict(train=images(120, 1), validation=images(40, 2), test=images(40, 3))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_clip(folder)
    return str(folder)


def test_the_command_line(
    splits: DatasetDict, model_path: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    splits.save_to_disk(str(tmp_path / "data"))
    given = ("--data", str(tmp_path / "data"), "--model", model_path, "--template", "a {}.")
    assert stop(monkeypatch, "fit", *given, "--out", str(tmp_path / "a")) == 0
    printed = capsys.readouterr().out
    assert "(mean average precision, test images)" in printed
    assert "Label by label" in (tmp_path / "a" / "report.html").read_text()
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    words = ("--words", str(tmp_path / "words.txt"), "--out", str(tmp_path / "b"))
    assert stop(monkeypatch, "fit", *given, *words) == 2
    assert "words are for the components of a report: of data" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    # what an earlier fit on other data left would be read as this one's
    (tmp_path / "a" / "run" / "run.json").write_text("of another adapter")
    (tmp_path / "a" / "report.html").write_text("of another adapter")
    assert stop(monkeypatch, "fit", *given, "--out", str(tmp_path / "a"), "--trainer") == 0
    left = sorted(path.name for path in (tmp_path / "a" / "run").iterdir())
    assert left == ["fitted_on.txt", "run.json", "run.safetensors", "run.yaml"]
    assert "of another adapter" not in (tmp_path / "a" / "report.html").read_text()
    capsys.readouterr()
    own = (str(tmp_path / "a"), "--data", str(tmp_path / "data"))
    assert stop(monkeypatch, "eval", *own) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {"mean_average_precision", "micro_f1", "macro_f1", "exact_match"} < set(measured)


def test_analyses_are_for_one_label(
    splits: DatasetDict, model_path: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    fit_adapter(model_path, splits, tmp_path / "a", templates=["a {}."], method="gains")
    with pytest.raises(ResiDualError, match="several labels per image: analyses from names"):
        study_model(model_path, splits)
    splits.save_to_disk(str(tmp_path / "data"))
    given = (str(tmp_path / "a"), "--data", str(tmp_path / "data"))
    assert stop(monkeypatch, "explain", *given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "got several labels per image: analyses from names are for one." in error
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    rows = collect_coordinates(
        classifier.model, batches(load_data(splits).test, classifier.image_processor)
    )
    with pytest.raises(ResiDualError, match=r"wanted one label per image, .* shape \(40, 4\)"):
        explain_adapter(classifier, rows)
