"""What each of several processes runs for test_large.py: sums of one store's shards."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from peft import get_peft_model

from residual_peft.bases.basis import SpectralBasis
from residual_peft.solvers.large import statistics_of
from residual_peft.solvers.store import CoordinateStore
from residual_peft.tuner import ResiDualConfig, put_basis
from tests.models import clip_model


def main(folder: Path, out: Path) -> None:
    """Open the store with its own basis, sum this process's shards, then all."""
    state = PartialState(cpu=True, timeout=timedelta(seconds=60))
    model = get_peft_model(clip_model(), ResiDualConfig()).eval()
    put_basis(model, SpectralBasis.from_pretrained(folder / "basis"))
    store = CoordinateStore.open(folder, model)
    columns = torch.arange(0, len(store.state.shift), 3)
    found = statistics_of(store, 3, columns=columns, across_processes=True)
    torch.save(found.state(), out / f"{state.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
