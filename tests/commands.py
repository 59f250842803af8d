"""The command line as a user starts it, and a folder of photos to start it on."""

import difflib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from residual_peft import cli
from residual_peft.demo.tasks import world_task


def photos(root: Path, attribute: str, count: int, seed: int) -> Path:
    """A folder of class folders, from the bundled world."""
    task = world_task(attribute, count, seed=seed)
    names = task.features["label"].names
    for index, row in enumerate(task):
        path = root / names[row["label"]]
        path.mkdir(exist_ok=True)
        row["image"].save(path / f"{index}.png")
    return root


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["residual-peft", *arguments])
    cli.main()


def stop(monkeypatch, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    return stopped.value.code


def _shape(line: str) -> str:
    """A line without what differs from machine to machine."""
    line = line.strip().removesuffix("...").strip()
    return re.sub(r"[-+]?\d[\d,.]*|[0-9a-f]{12,}", "0", line)


def says(shown: Iterable[str], printed: str) -> None:
    """Each line that is shown is among those printed, but for numbers and words of an example."""
    lines = [_shape(line) for line in printed.splitlines()]
    for line in filter(None, map(_shape, shown)):
        starts = [other[: len(line)] for other in lines]  # what an example cuts short
        close = difflib.get_close_matches(line, lines + starts, n=1, cutoff=0.6)
        assert close, f"{line!r} is like none of\n" + "\n".join(lines)
