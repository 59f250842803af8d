"""What each of several processes runs for test_statistics.py."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from residual_peft.classifiers.heads import HeadStatistics


def main(rows: Path, out: Path) -> None:
    """Sum this process's share of the rows, then all; the last process has none."""
    state = PartialState(cpu=True, timeout=timedelta(seconds=60))
    features, labels = torch.load(rows)
    rank, world = state.process_index, state.num_processes
    part = slice(rank, None, max(1, world - 1))
    statistics = HeadStatistics(features.shape[1], 3, per_class=True)
    if rank < world - 1:
        statistics.add(features[part], labels[part])
    whole = statistics.across_processes()
    torch.save(whole.state(), out / f"{rank}.pt")
    state.wait_for_everyone()
    state.destroy_process_group()  # or gloo's threads end the process with an error now and then


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
