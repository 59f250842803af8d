"""Real processes over gloo, as `accelerate launch` starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests" / "startup"))),
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def launch(*program: object, processes: int = 2) -> str:
    """Run a script, or `-m` and a module, in so many processes; what they print."""
    # accelerate's own --cpu starts several processes through MPI alone; torchrun's way on the CPU
    # is --multi_gpu with ACCELERATE_USE_CPU
    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return run("-m", "accelerate.commands.launch", *options, *program)


def run(*arguments: object, timeout: float = 120) -> str:
    """Run Python on what is checked out; show what it said if it fails or hangs."""
    found = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert found.returncode == 0, found.stderr[-9000:]
    return found.stdout
