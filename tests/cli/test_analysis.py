"""The command line of analyses: explain and analyse."""

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
    arguments = ("--data", str(folder), "--template", "a {}", "--no-report")
    assert stop(monkeypatch, "fit", *arguments, "--out", str(out)) == 0
    words.write_text("a circle\na square\na heart\nan arrow\n")
    photo = next((folder / "heart").iterdir())
    capsys.readouterr()
    given = ("--adapter", str(out), "--data", str(folder), "--image", str(photo))
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
