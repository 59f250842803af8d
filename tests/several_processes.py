"""What each of several processes runs for test_processes.py; what it finds goes to `out`."""

import json
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import get_peft_model
from torch import Tensor, distributed

from residual_peft.bases.accumulator import BasisAccumulator
from residual_peft.bases.basis import SpectralBasis
from residual_peft.bases.moments import Moments
from residual_peft.bases.processes import Processes
from residual_peft.data import ProcessedImages
from residual_peft.errors import ResiDualError
from residual_peft.solvers.store import write_coordinates
from residual_peft.tuner import ResiDualConfig, fit_bases
from tests.models import clip_model, pixels
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier, task

KINDS = ("embed", "head", "mlp", "output")
SHARES = {1: [61], 2: [17, 44], 3: [40, 0, 21]}  # images of each process
STORES = {  # 36 images
    "more shards than processes": {"fit_basis": False, "shard_size": 10},
    "fewer shards than processes": {"fit_basis": False, "shard_size": 100},
    "with the basis": {"fit_basis": True, "shard_size": 10},
    "with the basis, fewer shards": {"fit_basis": True, "shard_size": 100},
}
SHAPE = (2, 5)


def share(world: int, rank: int) -> Tensor:
    return pixels(61, seed=2).double().split(SHARES[world])[rank]


def samples() -> Tensor:
    """Far from zero, where sums of squares lose all digits."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(61, *SHAPE, generator=generator, dtype=torch.float64) + 1e7


def moments(world: int, rank: int) -> Moments:
    found = Moments()
    for batch in samples().split(SHARES[world])[rank].split(7):
        found.update(batch)
    return found.across_processes(SHAPE, torch.device("cpu")) if world > 1 else found


def stream_adapter(seed: int = 0) -> Any:
    return get_peft_model(clip_model(seed=seed).double(), ResiDualConfig(mode="stream"))


def bases(world: int, rank: int) -> dict[str, Any]:
    """Everything that is fitted from each process's share, as plain tensors."""
    images, many = share(world, rank), world > 1
    batches = list(images.split(7)) if len(images) else []
    model = clip_model().double()
    basis = SpectralBasis.fit(model, batches, KINDS, across_processes=many)
    adapted = get_peft_model(model, ResiDualConfig())
    fit_bases(adapted, batches, across_processes=many)
    streamed = stream_adapter()
    linears = fit_bases(streamed, batches, across_processes=many)
    assert isinstance(linears, dict)
    heads = [head for linear in linears.values() for head in linear.heads]
    found = moments(world, rank)
    return {
        "samples": [basis.num_samples, streamed.peft_config["default"].num_samples, found.count],
        "means": [*basis.means, *(head.mean for head in heads), found.mean],
        "components": [*basis.components, *(head.components for head in heads)],
        "eigenvalues": [*basis.eigenvalues, *(head.eigenvalues for head in heads)],
        "covariance": found.covariance(),
        "adapter": {k: v for k, v in adapted.state_dict().items() if "residual" in k},
    }


def stores(out: Path, *, across_processes: bool) -> None:
    for name, options in STORES.items():
        classifier = adapted_classifier()
        store = write_coordinates(
            classifier.model,
            ProcessedImages(task().train, classifier.image_processor, "train"),
            out / name,
            batch_size=4,
            across_processes=across_processes,
            **options,
        )
        assert len(store.load()) == len(store)


class Unreadable(ProcessedImages):
    def __getitem__(self, index: int) -> dict[str, Any]:
        raise ResiDualError("image 3 cannot be read.")


def refused(out: Path, rank: int) -> dict[str, Callable[[], object]]:
    """What has to fail in every process, though only one of them is at fault."""
    model = clip_model().double()
    nan = pixels(4).double() * float("nan")
    images = [pixels(20).double()]

    def accumulate(seed: int = 0, units: tuple[str, ...] = KINDS) -> object:
        accumulator = BasisAccumulator(clip_model(seed=seed).double(), units)
        accumulator.update(images[0])
        return accumulator.across_processes()

    def stream(seed: int) -> object:
        return fit_bases(stream_adapter(seed), images, across_processes=True)

    def write(folder: str, seed: int = 0, kind: type = ProcessedImages, size: int = 10) -> object:
        classifier = adapted_classifier(model=clip_model(seed=seed, vocab_size=VOCABULARY))
        data = kind(task().train, classifier.image_processor, "train")
        path = out / folder
        return write_coordinates(
            classifier.model, data, path, shard_size=size, across_processes=True
        )

    def bug() -> None:
        with Processes.running().in_step():
            if rank == 1:
                raise KeyError("a bug")

    last = KINDS if rank == 0 else KINDS[:-1]
    kind = Unreadable if rank == 1 else ProcessedImages
    return {
        "weights": lambda: accumulate(seed=rank),
        "units": lambda: accumulate(units=last),
        "no images": lambda: SpectralBasis.fit(model, [], across_processes=True),
        "one image": lambda: SpectralBasis.fit(
            model, [] if rank else [images[0][:1]], across_processes=True
        ),
        "not finite": lambda: SpectralBasis.fit(
            model, [nan] if rank == 1 else images, across_processes=True
        ),
        "bug": bug,
        "weights, stream": lambda: stream(rank),
        "weights, store": lambda: write("other", seed=rank),
        "options, store": lambda: write("other", size=10 + rank),
        "folder, store": lambda: write(f"folder{rank}"),
        "image, store": lambda: write("unreadable", kind=kind),
    }


def said(function: Callable[[], object]) -> str:
    try:
        function()
    except (ResiDualError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Wire:
    """Counts what the processes send: bytes of tensors summed, of the largest object gathered."""

    def __init__(self) -> None:
        self.summed, self.largest = 0, 0
        self.reduce, self.gather = distributed.all_reduce, distributed.all_gather_object
        distributed.all_reduce, distributed.all_gather_object = self.sum, self.collect

    def sum(self, tensor: Tensor) -> None:
        self.summed += tensor.nbytes
        self.reduce(tensor)

    def collect(self, found: list[Any], value: object) -> None:
        self.largest = max(self.largest, len(pickle.dumps(value)))
        self.gather(found, value)

    def close(self) -> dict[str, int]:
        distributed.all_reduce, distributed.all_gather_object = self.reduce, self.gather
        return {"summed": self.summed, "largest": self.largest}


def wire(world: int, rank: int) -> dict[str, int]:
    counting = Wire()
    images = share(world, rank)
    batches = list(images.split(7)) if len(images) else []
    SpectralBasis.fit(clip_model().double(), batches, KINDS, across_processes=True)
    return counting.close()


if __name__ == "__main__":
    out = Path(sys.argv[1])
    # far shorter than the test waits: who hangs says so
    state = PartialState(cpu=True, timeout=timedelta(seconds=60))
    assert state.backend == "gloo", state.backend
    world, rank = state.num_processes, state.process_index
    torch.save(bases(world, rank), out / f"bases{rank}.pt")
    stores(out, across_processes=True)
    messages = {name: said(function) for name, function in refused(out, rank).items()}
    (out / f"messages{rank}.json").write_text(json.dumps(messages))
    (out / f"wire{rank}.json").write_text(json.dumps(wire(world, rank)))
    state.destroy_process_group()
