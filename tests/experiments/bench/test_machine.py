"""Memory while a block runs."""

import sys
import time

import pytest
import torch

from residual_peft.experiments.bench.machine import watched_memory


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
def test_the_peak_and_the_mean_of_what_a_block_takes() -> None:
    """200 MB for half of the time: the whole in the peak, about half of it in the mean."""
    with watched_memory() as quiet:
        time.sleep(0.02)
    with watched_memory(0.01) as memory:
        time.sleep(0.5)
        taken = torch.ones(50_000_000)
        time.sleep(0.5)
        del taken
    assert memory.peak - quiet.peak == pytest.approx(2e8, rel=0.2)
    assert 0.2 * 2e8 < memory.mean - quiet.mean < 0.8 * 2e8
    assert memory.accelerator == 0 or torch.cuda.is_available()
