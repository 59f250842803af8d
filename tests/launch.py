"""Real processes over gloo, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def launch(module: str, *arguments: object, processes: int = 2) -> None:
    """Run a module in so many processes, and show what they said if they fail or hang."""
    # accelerate's own --cpu starts several processes through MPI alone; torchrun's way on the CPU
    # is --multi_gpu with ACCELERATE_USE_CPU
    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    run(["-m", "accelerate.commands.launch", *options, "-m", module, *map(str, arguments)])


def run(arguments: list[str]) -> None:
    """Run Python on what is checked out."""
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr[-9000:]
