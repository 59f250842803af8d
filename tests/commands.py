"""The command line as a user starts it, and a folder of photos to start it on."""

import sys
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
