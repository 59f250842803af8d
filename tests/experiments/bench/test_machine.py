"""Memory while a block runs."""

import mmap
import sys
import time
from pathlib import Path

import pytest
import torch

from residual_peft.experiments.bench import machine
from residual_peft.experiments.bench.machine import watched_memory
from tests.pairs import table

MANY = 200_000_000


def pages(count: int) -> mmap.mmap:
    """So many bytes from the system itself: a heap may have that much left from earlier tests."""
    taken = mmap.mmap(-1, count)
    for start in range(0, count, mmap.PAGESIZE):
        taken[start] = 1
    return taken


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
@table("forgets", [True, False], ids=["a system that forgets peaks", "one that does not"])
def test_the_peak_and_the_mean_of_what_a_block_takes(
    forgets: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """200 MB for half of the time: the whole in the peak, about half of it in the mean."""
    if not forgets:
        monkeypatch.setattr(machine, "_RESET", tmp_path)
    pages(2 * MANY).close()  # what ran before
    with watched_memory() as quiet:
        time.sleep(0.02)
    with watched_memory(0.01) as memory:
        time.sleep(0.5)
        taken = pages(MANY)
        time.sleep(0.5)
        taken.close()
    assert memory.peak - quiet.peak == pytest.approx(MANY, rel=0.2)
    assert 0.2 * MANY < memory.mean - quiet.mean < 0.8 * MANY
    assert memory.accelerator == 0 or torch.cuda.is_available()
