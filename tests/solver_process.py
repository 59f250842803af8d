"""The convex problem in a process of its own: `python -m tests.solver_process FOLDER OUT`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from residual_peft import Objective, ZeroShotClassifier, solve_gains
from residual_peft.solvers.coordinates import Coordinates
from residual_peft.tuner import readout_state


def main() -> None:
    folder = Path(sys.argv[1])
    classifier = ZeroShotClassifier.from_pretrained(folder / "adapter")
    given, state = load_file(folder / "coordinates"), readout_state(classifier.model)
    rows = Coordinates(given["readout"], given["labels"], given["coordinates"], state)
    objective = Objective(normalized=False, strength=1e-2)
    fit = solve_gains(classifier, rows, objective=objective, tolerance=1e-9)
    kind = torch.backends.cpu.get_cpu_capability()
    save_file({"gains": fit.gains.detach().clone()}, sys.argv[2], {"kind": kind})


if __name__ == "__main__":
    main()
