"""How the command line starts and ends: at once, and with a status that says whose turn it is."""

import errno
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from residual_peft.app import fitting
from residual_peft.errors import ResiDualError
from tests.commands import run, stop
from tests.launch import ENVIRONMENT, ROOT
from tests.pairs import table

BARE = """
import sys
from residual_peft import cli
sys.argv = ["residual-peft", *sys.argv[1:]]
try:
    cli.main()
finally:
    heavy = {"torch", "transformers", "datasets", "huggingface_hub", "numpy"} & set(sys.modules)
    print("heavy:", *heavy)
"""


def bare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE, *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@table("arguments", [["--help"], ["-h"], ["fit", "-h"], ["eval", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = bare(*arguments)
    assert done.returncode == 0
    assert "Usage: residual-peft" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_the_version() -> None:
    done = bare("--version")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"residual-peft {version('residual-peft')}", "heavy:"]


def test_no_garbage_is_looked_for_and_no_thread_spins() -> None:
    """Seconds of every command went into what imports made, and minutes of a busy machine's fits.

    What a user has set for the threads stays.
    """
    told = """
import atexit, gc, os
def tell():
    print(gc.get_freeze_count() > 10_000, gc.get_threshold()[0], os.environ["GOMP_SPINCOUNT"])
atexit.register(tell)
"""
    for own, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run(
            [sys.executable, "-c", told + BARE, "--version"],
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT / "src")} | own,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == f"True 50000 {expected}"


@pytest.mark.parametrize("command", ["fit", "analyse", "demo", "explain"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_imported(
    command: str, tmp_path: Path
) -> None:
    given = {"demo": [], "explain": ["a", "--data", "photos"]}
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "such" / "out"
    done = bare(command, "--out", out, *given.get(command, ["--data", "photos"]))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("residual-peft: wanted to write ")
    assert done.stdout.splitlines()[-1] == "heavy:"


def raising(error: BaseException):
    def instead(*args, **kwargs):
        raise error

    return instead


ARGUMENTS = ("eval", "a", "--data", "b")


@table(
    ("error", "status", "line"),
    [
        (ResiDualError("mend it."), 2, "residual-peft: mend it."),
        (PermissionError(errno.EACCES, "no", "/x"), 2, "you have no right to do that there"),
        (OSError(errno.ENOSPC, "no"), 2, "stopped: no space is left on that disk; make room."),
        (MemoryError(), 2, "memory ran out; take a smaller --batch-size"),
        (KeyboardInterrupt(), 130, "residual-peft: interrupted."),
        (KeyboardInterrupt("and kept."), 130, "residual-peft: and kept."),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(fitting, "evaluate_adapter", raising(error))
    assert stop(monkeypatch, *ARGUMENTS) == status
    captured = capsys.readouterr()
    assert line in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(fitting, "evaluate_adapter", raising(KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        run(monkeypatch, *ARGUMENTS)


def test_the_model_is_the_bundled_one_unless_named() -> None:
    shown = " ".join(bare("fit", "--help").stdout.replace("│", " ").split())
    assert "the bundled small CLIP" in shown


ONLY_ARGUMENTS = {
    "eval": ("--adapter", "ADAPTER"),
    "explain": ("--image", "ADAPTER"),
    "push": ("--repo", "ADAPTER"),
    "update": ("--adapter", "ADAPTER"),
    "look": ("--data", "DATA"),
}


@table("command", ONLY_ARGUMENTS)
def test_what_a_command_works_on_is_an_argument(command: str) -> None:
    """Without it, or as an option, it is told before anything is imported."""
    option, argument = ONLY_ARGUMENTS[command]
    for given, line in (
        ((), f"Missing argument '{argument}'."),
        ((option, "a"), f"No such option:? '?{option}"),  # as the release of click writes it
    ):
        done = bare(command, *given)
        assert done.returncode == 2
        assert re.search(line, done.stderr)
        assert done.stdout.splitlines() == ["heavy:"]


def test_shells_complete_commands_and_options() -> None:
    environment = {**ENVIRONMENT, "_RESIDUAL_PEFT_COMPLETE": "complete_bash"}
    for words, expected in {
        "residual-peft ex": "explain",
        "residual-peft fit --te": "--template",
    }.items():
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", BARE], env=environment | asked, cwd=ROOT,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert expected in done.stdout.split()
        assert done.stdout.splitlines()[-1] == "heavy:"
