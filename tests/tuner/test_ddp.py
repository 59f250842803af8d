"""Two processes give the gains of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from residual_peft.errors import ResiDualError
from residual_peft.tuner import fit_bases
from tests.models import pixels
from tests.tuner.ddp import train
from tests.tuner.twin import adapted, relative

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_give_the_gains_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    train(one, 1, 0)
    # accelerate's own --cpu starts several processes through MPI alone; torchrun's way on the CPU
    # is --multi_gpu with ACCELERATE_USE_CPU
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *options,
            "-m",
            "tests.tuner.ddp",
            str(two),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
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
