"""Two processes give the gains of one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from residual_peft.errors import ResiDualError
from residual_peft.tuner import fit_bases
from tests.launch import launch
from tests.models import pixels
from tests.tuner.ddp import train
from tests.tuner.twin import adapted, relative


@pytest.mark.slow
def test_two_processes_give_the_gains_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    train(one, 1, 0)
    launch("-m", "tests.tuner.ddp", two)
    gains = [torch.load(path)[0] for path in (one / "gains0.pt", *sorted(two.glob("gains*.pt")))]
    assert len(gains) == 3
    assert torch.equal(gains[1], gains[2])  # both processes end with the same
    assert relative(gains[1], gains[0]) < 1e-4
    assert relative(gains[0], torch.ones_like(gains[0])) > 1e-2  # and training moved them
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)]
    for name, tensor in files[0].items():
        assert relative(files[1][name], tensor) < 1e-4, name


def test_processes_that_do_not_run_are_not_waited_for() -> None:
    with pytest.raises(ResiDualError, match=r"needs torch\.distributed, which is not running here"):
        fit_bases(adapted(), [pixels(40)], across_processes=True)
