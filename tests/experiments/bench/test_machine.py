"""Memory while a block runs; a machine and its packages in words."""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from residual_peft.experiments.bench.machine import processor, versions, watched_memory


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


def test_versions_are_those_installed_and_a_processor_has_a_name(monkeypatch) -> None:
    found = versions(["torch", "no-such-package"])
    assert found == {
        "python": platform.python_version(),
        "torch": version("torch"),
        "no-such-package": "not installed",
    }
    text = "processor\t: 0\nmodel name\t: A maker's 7: one\nmodel name\t: other\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert processor() == "A maker's 7: one"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert processor() == (platform.processor() or platform.machine())
