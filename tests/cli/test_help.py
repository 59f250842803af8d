"""Each command's help shows one example: it is run, and says what the help says it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from residual_peft.cli.program import app
from residual_peft.demo.tasks import handwriting
from tests.commands import says, stop
from tests.hub_client import hub  # noqa: F401  a fixture
from tests.pairs import table

NAMES = [command.name for command in app.registered_commands]
# fit comes first, since the others want an adapter, and update last, since it changes it; the demo
# takes minutes, and tests/demo runs it; explore runs until tests/app/test_exploring.py stops it
RUN = [
    "fit",
    *(name for name in NAMES if name not in ("fit", "demo", "explore", "update")),
    "update",
]


def example(name: str) -> list[str]:
    """The lines of a command's example, the first what is typed."""
    (command,) = [command for command in app.registered_commands if command.name == name]
    return [line.removeprefix("  ") for line in command.cls.example.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a folder of class folders, and a photo."""
    root = tmp_path_factory.mktemp("reader")
    digits = handwriting()["train"]
    labels = digits["label"]
    for number, name in enumerate(("zero", "one", "two")):
        (root / "photos" / name).mkdir(parents=True)
        for row in [i for i, label in enumerate(labels) if label == number][:30]:
            digits[row]["image"].save(root / "photos" / name / f"{row}.png")
    for number, name in ((0, "zero"), (1, "one"), (3, "three")):
        (root / "more-photos" / name).mkdir(parents=True)
        for row in [i for i, label in enumerate(labels) if label == number][29:36]:
            digits[row]["image"].save(root / "more-photos" / name / f"{row}.png")
    digits[0]["image"].save(root / "photo.png")
    return root


@table("name", NAMES)
def test_an_example_is_short_and_no_line_too_long(name: str) -> None:
    typed, *shown = example(name)
    assert typed.startswith(f"$ residual-peft {name} ") or typed == f"$ residual-peft {name}"
    assert 1 <= len(shown) <= 12
    assert all(len(line) <= 88 for line in shown)


@table("name", NAMES)
def test_a_narrow_terminal_shows_the_whole_of_every_option(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}, terminal_width=80)
    command = typer.main.get_command(app).commands[name]
    options = {option for one in command.params for option in one.opts if option.startswith("-")}
    assert options <= set(re.split(r"[\s,]+", shown.output))
    assert max(map(len, shown.output.partition("Example:")[0].splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_output_is_that_of_the_example(name: str, folder, hub, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    typed, *shown = example(name)
    first = {
        "update": "fit --data photos --out my-adapter --method ridge --keep-statistics --no-report",
        "convert": "fit --data photos --out my-gains --method gains --no-report",
        "merge": "fit --data photos --out my-stream-adapter --trainer --set mode=stream",
    }
    if given := first.get(name):
        assert stop(monkeypatch, *given.split()) == 0
    assert stop(monkeypatch, *shlex.split(typed.removeprefix("$ "))[1:]) == 0
    says(shown, capsys.readouterr().out)


def test_a_shell_completes_commands_and_options() -> None:
    program = "import sys; sys.argv = ['residual-peft']; from residual_peft.cli import main; main()"
    for typed, shown in (("f", "fit"), ("fit --batc", "--batch-size")):
        words = f"residual-peft {typed}"
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **asked, "_RESIDUAL_PEFT_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [shown], done.stderr
