"""The command line of analyses: explain and analyse."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands import photos, stop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("shapes"), "shape", 200, seed=6)


def test_analyse(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "study"
    assert stop(monkeypatch, "analyse", "--data", str(folder), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "study.json").read_text())
    lines = {line["letter"]: line["accuracy"] for line in found["selection"]["lines"]}
    assert f"whole model {lines['B']:.3f}" in printed
    assert found["dataset"] == folder.name
    rows = [row for row in printed.splitlines() if "heads" in row and "│" in row]
    assert len(rows) == 5  # one head, which has a line of its own, is two of the seven budgets
    best = found["selection"]["rankings"][0]
    first = best["rows"][0]["unit"] if "rows" in best else best["units"][0]
    assert f"{first}: " in printed


def test_explain(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, words = tmp_path / "adapter", tmp_path / "words.txt"
    arguments = ("--data", str(folder), "--template", "a {}", "--no-report", "--method", "gains")
    assert stop(monkeypatch, "fit", *arguments, "--out", str(out)) == 0
    words.write_text("a circle\na square\na heart\nan arrow\n")
    photo = next((folder / "heart").iterdir())
    capsys.readouterr()
    given = (str(out), str(photo), "--data", str(folder))
    more = ("--words", str(words), "--out", str(tmp_path / "all.json"), "--components", "3")
    assert stop(monkeypatch, "explain", *given, *more) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "all.json").read_text())
    assert len(found["components"]) == 3
    signs = {word["text"]: word["coefficient"] for word in found["components"][0]["words"]}
    first, value = next(iter(signs.items()))
    assert f"{'+' if value > 0 else '−'} {first}" in printed
    for component in found["components"]:
        assert component["unit"] in printed
        assert f"{component['share']:.1%}" in printed
        assert {said["text"] for said in component["words"]} <= set(words.read_text().splitlines())
    (moved,) = found["moved"].values()
    said = f"{moved['from']} -> {moved['to']}"
    assert said in printed or f"stays {moved['from']}, next {moved['to']}" in printed
    assert stop(monkeypatch, "explain", *given, "--words", str(tmp_path / "none.txt")) == 2


def test_explain_and_eval_of_a_class_head(
    folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    out, photo = tmp_path / "adapter", next((folder / "heart").iterdir())
    arguments = ("--data", str(folder), "--template", "a {}", "--no-report", "--method", "ridge")
    assert stop(monkeypatch, "fit", *arguments, "--out", str(out)) == 0
    capsys.readouterr()
    listed = ("--out", str(tmp_path / "recorded.json"))
    assert stop(monkeypatch, "explain", str(out), *listed) == 0  # what the fit recorded
    first = json.loads((tmp_path / "recorded.json").read_text())["components"][0]
    assert set(first) == {"unit", "component", "share", "toward_label", "words"}
    assert first["unit"].startswith("layer")
    assert set(first["words"][0]) == {"text", "coefficient"}
    recorded = capsys.readouterr().out
    assert "how the class head's logits vary over the 20 test images of the fit" in recorded
    assert "heart:\n  for layer" in recorded
    given = (str(out), str(photo), "--out", str(tmp_path / "one.json"))
    assert stop(monkeypatch, "explain", *given) == 0  # a single image, without data
    printed = capsys.readouterr().out
    (decided,) = json.loads((tmp_path / "one.json").read_text())["moved"].values()
    assert f"{photo}: {decided['class']} rather than {decided['rather_than']}, margin" in printed
    assert f"together {decided['margin']:+.2f}" in printed
    more = ("--data", str(folder), "--components", "2", "--out", str(tmp_path / "all.json"))
    assert stop(monkeypatch, "explain", str(out), *more) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    total = sum(unit["share"] for unit in found["units"]) + found["text_share"]
    assert abs(total - 1) < 1e-6
    assert [row["class"] for row in found["classes"]] == sorted(p.name for p in folder.iterdir())
    capsys.readouterr()
    tables = ("--confusion", str(tmp_path / "c.csv"), "--mistakes", str(tmp_path / "m.csv"))
    assert stop(monkeypatch, "eval", str(out), "--data", str(folder), *tables) == 0
    scores = json.loads(capsys.readouterr().out)
    counts = [list(map(int, row[1:])) for row in list(csv.reader((tmp_path / "c.csv").open()))[1:]]
    right = sum(counts[k][k] for k in range(len(counts)))
    assert sum(map(sum, counts)) == scores["images"]
    assert right / scores["images"] == scores["accuracy"]
    wrong = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert len(wrong) == scores["images"] - right
    assert all(Path(row["file"]).parent.name == row["label"] for row in wrong)


def test_explain_without_anything_to_look_at_is_one_line(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    assert stop(monkeypatch, "explain", "owner/adapter") == 2
    assert "wanted --data or images to explain 'owner/adapter' with" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    assert stop(monkeypatch, "explain", str(tmp_path / "adapter")) == 2
    assert "Without one, explain wants --data or images" in capsys.readouterr().err
