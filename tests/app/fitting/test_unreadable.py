"""One bad file does not end a fit: it is skipped with a word, counted once and listed."""

import csv
import json
from pathlib import Path

import pytest

from residual_peft import ZeroShotClassifier
from residual_peft.app.fitting import evaluate_adapter, fit_adapter
from residual_peft.data import ProcessedImages
from residual_peft.data.images import UnreadableImage
from residual_peft.errors import ResiDualError
from residual_peft.reporting.run_record import RunRecord
from residual_peft.tuner import ResiDualConfig
from tests.app.fitting.photos import photos
from tests.commands import stop
from tests.training_case import save_clip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_clip(tmp_path / "model")
    photos(tmp_path / "photos", count=20)
    return tmp_path


def bad(root: Path, count: int) -> list[Path]:
    paths = sorted((root / "photos" / "dog").iterdir())[:count]
    for number, path in enumerate(paths):
        path.write_bytes(path.read_bytes()[:100] if number % 2 else b"no image")
    return paths


def listed(out: Path) -> list[str]:
    with (out / "skipped.csv").open(newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


class Broken:
    """Images whose files look whole and cannot be decoded: those with these names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: set[str]) -> None:
        self.names, self.asked = names, []
        real = ProcessedImages._read

        def read(images: ProcessedImages, index: int):
            path = images.dataset[index]["image"]["path"]
            name = "/".join(Path(path).parts[-2:])
            self.asked.append(name)
            if name in self.names:
                raise UnreadableImage(f"could not read '{path}'.", path, "broken inside")
            return real(images, index)

        monkeypatch.setattr(ProcessedImages, "_read", read)


def fit(root: Path, out: Path, **options):
    options = {"templates": ["a {}."], "num_workers": 0} | options
    return fit_adapter(str(root / "model"), str(root / "photos"), out, method="gains", **options)


def test_unreadable_files_are_skipped_listed_and_told(root, tmp_path, monkeypatch, capsys) -> None:
    paths = bad(root, 3)
    out = tmp_path / "a"
    given = ("--model", str(root / "model"), "--data", str(root / "photos"), "--template", "a {}.")
    assert stop(monkeypatch, "fit", *given, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "3 images left out as unreadable:" in printed
    assert all(str(path) in printed for path in paths)
    assert len(listed(out)) == 3
    assert RunRecord.load(out).facts.skipped == 3
    assert sum(RunRecord.load(out).facts.splits.values()) == 57
    assert stop(monkeypatch, "eval", str(out), "--data", str(root / "photos")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["skipped_as_unreadable"]) == ("the data of its fit", 3)
    assert stop(monkeypatch, "fit", *given, "--out", str(tmp_path / "b"), "--strict") == 2
    assert str(paths[0]) in capsys.readouterr().err.splitlines()[-1]
    bad(root, 5)
    assert stop(monkeypatch, "fit", *given, "--out", str(out)) == 2
    assert "5 of the 60 images" in capsys.readouterr().err.splitlines()[-1]
    assert stop(monkeypatch, "fit", *given, "--out", str(out), "--max-bad", "0.1") == 0
    assert len(listed(out)) == 5
    photos(root / "photos", count=20)  # all whole again
    assert stop(monkeypatch, "fit", *given, "--out", str(out)) == 0
    assert not (out / "skipped.csv").exists()


@pytest.mark.parametrize("way", ["coordinates", "trainer", "stream"])
def test_what_only_decoding_finds_drops_out(way, root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 1)
    names = {"cat/003.png", "owl/000.png", "owl/011.png"}
    broken = Broken(monkeypatch, names)
    config = ResiDualConfig(mode="stream") if way == "stream" else None
    report = fit(root, tmp_path / "a", trainer=way != "coordinates", config=config)
    assert {"/".join(Path(item.file).parts[-2:]) for item in report.skipped} == names
    assert [item.reason for item in report.skipped] == ["broken inside"] * 3
    assert len(report.skipped) == len(listed(tmp_path / "a")) == 3
    assert sum(report.splits.values()) == 57
    if way == "coordinates":
        assert len(broken.asked) == len(set(broken.asked)) == 60  # each once
    classifier = ZeroShotClassifier.from_pretrained(tmp_path / "a")
    assert len(classifier.fitted_on) == report.splits["train"] + report.splits["validation"]
    found = evaluate_adapter(tmp_path / "a", str(root / "photos"), num_workers=0)
    assert found["images"] == report.splits["test"]
    assert found["accuracy"] == report.adapted["accuracy"]


def test_too_many_found_while_decoding_end_the_fit(root, tmp_path, monkeypatch) -> None:
    Broken(monkeypatch, {f"cat/{number:03}.png" for number in range(8)})
    with pytest.raises(
        ResiDualError, match=r"of the 60 images of .* be read, and max_bad=0.05 allows 3"
    ):
        fit(root, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    report = fit(root, tmp_path / "a", max_bad=0.2)
    assert len(report.skipped) == 8


def test_one_found_while_decoding_ends_a_strict_fit(root, tmp_path, monkeypatch) -> None:
    Broken(monkeypatch, {"cat/003.png"})
    with pytest.raises(ResiDualError, match=r"003.png' \(broken inside\); .* leave out strict"):
        fit(root, tmp_path / "a", strict=True)


def test_those_of_both_kinds_are_counted_together(root, tmp_path, monkeypatch) -> None:
    bad(root, 2)
    Broken(monkeypatch, {"cat/003.png", "owl/004.png"})
    with pytest.raises(
        ResiDualError, match=r"4 of the 60 images of .* be read, and max_bad=0.05 all"
    ):
        fit(root, tmp_path / "a")


def test_skipped_files_stay_at_home(root, tmp_path, monkeypatch) -> None:
    from residual_peft.hub.directories import _files_of

    bad(root, 1)
    fit(root, tmp_path / "a")
    assert (tmp_path / "a" / "skipped.csv").is_file()
    names = {path.name for path in _files_of(tmp_path / "a", True)}
    assert "adapter_model.safetensors" in names
    assert not names & {"skipped.csv", "fitted_on.txt", "run.json"}
