"""`residual-peft look`: lines, JSON, a sheet; and what it needs no model for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import photos, stop
from tests.launch import ENVIRONMENT, ROOT
from tests.pairs import table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return photos(tmp_path / "photos", "size", 30, seed=5)


def test_lines_and_a_sheet(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "sheet.html"
    assert stop(monkeypatch, "look", str(folder), "--out", str(out)) == 0
    captured = capsys.readouterr()
    first, *_, last = captured.out.splitlines()
    assert first.startswith("30 images of 2 classes (train 30)")
    assert last == f"The contact sheet is {out}"
    assert captured.err.startswith(f"Looking at {folder}.")
    assert "<!doctype html>" in out.read_text()


def test_json_is_all_that_is_printed(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "sheet.html"
    given = ("look", "--data", str(folder), "--json", "--out", str(out))
    assert stop(monkeypatch, *given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30
    assert found["source"] == str(folder)


def test_a_look_needs_no_models(folder: Path) -> None:
    """What takes seconds to import is for whoever asks for near copies."""
    program = "import sys; from residual_peft import cli\ntry:\n    cli.main()\nfinally:\n"
    program += "    print({'peft', 'sklearn', 'transformers.modeling_utils'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program, "look", folder],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "set()"


@table(
    ("given", "message"),
    [
        ([], "wanted data, got none: residual-peft look DATA"),
        (["photos", "--out", "."], "wanted a file to write to, got the directory '.'"),
        (["nowhere/at-all"], "could not load the data 'nowhere/at-all'"),
    ],
)
def test_mistakes(given, message, folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert stop(monkeypatch, "look", *given) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
