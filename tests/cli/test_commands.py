"""What the command line says besides: notes, without lines of code."""

import logging
import re
import warnings
from pathlib import Path

import pytest

from residual_peft.cli.commands import quiet
from tests.commands import photos, stop


@pytest.mark.filterwarnings("default")
def test_warnings_and_logs_are_notes(capsys) -> None:
    with warnings.catch_warnings():
        quiet()
        warnings.warn("few \x1b[2J images", stacklevel=1)
        logging.getLogger("residual_peft.data").info("two are left out")
    assert capsys.readouterr().err == "note: few \\x1b[2J images\nnote: two are left out\n"


@pytest.mark.filterwarnings("default")
def test_a_fit_of_few_images_shows_no_line_of_code(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = photos(tmp_path, "shape", 100, seed=6)
    (tmp_path / "words.txt").write_text("a circle\na square\n")
    given = ("--data", str(folder), "--template", "a {}", "--no-report")
    given = (*given, "--words", str(tmp_path / "words.txt"))
    assert stop(monkeypatch, "fit", *given, "--out", str(tmp_path / "adapter")) == 0
    shown = capsys.readouterr().err
    assert re.search(r"note: \d\d images span at most \d\d of the 128 directions that a", shown)
    assert "only those get gains; more images would give more." in shown
    assert "Warning" not in shown
    assert ".py:" not in shown
