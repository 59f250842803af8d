"""Whatever a stranger's folder holds, a loader loads it or ends in one ResiDualError.

The memory of a child is bounded by `run.MEMORY` beyond what good folders take, and the time of an
input by `run.SECONDS`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import ENVIRONMENT, ROOT


def fuzz(root: Path, inputs: int, start: int) -> list[dict]:
    command = [sys.executable, "-m", "tests.fuzz.run", str(root), str(inputs), str(start)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:].decode(errors="replace")
    return json.loads(done.stdout)


def test_a_hundred_spoiled_folders(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 120, 0) == []


@pytest.mark.slow
def test_twenty_thousand_spoiled_folders(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 20_400, 1_000_000) == []
