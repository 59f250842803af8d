"""The command line: fit, then eval, on a folder; one line for what can be mended."""

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.commands import photos, run, stop


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), "size", 60, seed=5)


def test_a_fit_without_a_report_can_have_one_later(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "adapter"
    monkeypatch.chdir(folder)
    arguments = ("fit", "--data", ".", "--out", str(out), "--template", "a {} object")
    assert stop(monkeypatch, *arguments, "--no-report") == 0
    assert "The report" not in capsys.readouterr().out
    assert not (out / "report.html").exists()
    assert ModelCard.load(out / "README.md").data.eval_results[0].dataset_name == folder.name
    assert stop(monkeypatch, "report", str(out)) == 0
    assert "Content-Security-Policy" in (out / "report.html").read_text()


def test_fit_then_eval(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "adapter"
    with pytest.raises(SystemExit) as stopped:
        run(
            monkeypatch,
            "fit",
            "--data",
            str(folder),
            "--out",
            str(out),
            "--template",
            "a {} object",
            "--license",
            "mit",
        )
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "adapted" in printed
    data = ModelCard.load(out / "README.md").data
    assert data.license == "mit"
    found = {result.metric_type: result for result in data.eval_results}
    assert set(found) == {
        "accuracy",
        "mean_per_class_recall",
    }  # of four classes all are in the top 5
    assert found["accuracy"].dataset_name == folder.name
    assert f"adapted {found['accuracy'].metric_value:.3f}" in printed
    page = (out / "report.html").read_text()
    for text in ((out / "README.md").read_text(), page):
        assert folder.name in text
        assert str(folder.parent) not in text
    assert f"The report is {out / 'report.html'}" in printed
    assert f"{found['accuracy'].metric_value:.1%}"[:-1] + "\N{NO-BREAK SPACE}%" in page
    elsewhere = tmp_path / "shown" / "page.html"
    assert stop(monkeypatch, "report", str(out), "--out", str(elsewhere)) == 0
    assert elsewhere.read_text() == page
    assert f"The report is {elsewhere}" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert stop(monkeypatch, "report", str(out / "run")) == 0
    assert (out / "run" / "report.html").read_text() == page
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "eval", str(out), "--data", str(folder))
    assert stopped.value.code == 0
    assert '"accuracy"' in capsys.readouterr().out


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "residual_peft.cli", "fit", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--data", "nobody/nothing-here"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "nobody/nothing-here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
