"""The convex optimum does not depend on the machine: other instructions, other numbers of threads.

Given are an adapter's directory and coordinates, as they are when a store is shared. What differs
between two processors in torch's arithmetic is which kernels it picks and how it divides the work;
both are chosen by hand here, as no second machine is at hand in a test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPModel

from tests.launch import ENVIRONMENT, ROOT
from tests.training_case import adapted_classifier, passed, save_clip

MACHINES = {
    "plain": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
    "as it is": {"OMP_NUM_THREADS": "1"},
}


@pytest.fixture(scope="module")
def gains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder: Path = tmp_path_factory.mktemp("machines")
    save_clip(folder / "clip")
    classifier = adapted_classifier(model=CLIPModel.from_pretrained(folder / "clip"))
    rows = passed(classifier)
    given = {"readout": rows.readout, "labels": rows.labels, "coordinates": rows.coordinates}
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, folder / "coordinates")
    classifier.save_pretrained(folder / "adapter")
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.solver_process", folder, folder / name],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | settings,
        )
        for name, settings in MACHINES.items()
    }
    assert [process.wait(120) for process in started.values()] == [0] * len(started)
    found = {}
    for name in MACHINES:
        with safe_open(folder / name, "pt") as file:
            found[f"{name} ({file.metadata()['kind']})"] = file.get_tensor("gains")
    return found


def test_other_kernels_and_threads_give_the_same_gains(gains: dict[str, torch.Tensor]) -> None:
    first, *others = gains.values()
    assert float((first - 1).abs().max()) > 0.1
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-6)
