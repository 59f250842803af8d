"""Several processes of `torch.distributed` as one: who they are, what each says, their sums."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from ..errors import ResiDualError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; alone, unless `running` made it."""

    rank: int = 0
    world: int = 1

    @classmethod
    def running(cls) -> "Processes":
        """Those of `torch.distributed`; refused where it is not running."""
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ResiDualError(
                "across_processes=True needs torch.distributed, which is not running here: start "
                "the script with 'accelerate launch' or torchrun, or leave it out."
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gathered(self, value: _Value) -> list[_Value]:
        """What each process gives here, by rank. It is pickled: for what is small."""
        if self.world == 1:
            return [value]
        found: list[_Value | None] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def check_same(self, mine: Mapping[str, object], remedy: str) -> None:
        """Refuse, in every process, to go on where they do not all work on the same, by name."""
        said = self.gathered({key: str(value) for key, value in mine.items()})
        for key, first in said[0].items():
            for rank, theirs in enumerate(said):
                if theirs[key] != first:
                    raise ResiDualError(
                        f"wanted the same {key} in every process, got {first} in process 0 and "
                        f"{theirs[key]} in process {rank}: {remedy}"
                    )

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Wait for the others at the end of the block; what fails in one process fails in all.

        The others would wait for it until the time limit of `torch.distributed`; they raise a
        ResiDualError with what it said. Nothing inside may itself wait for other processes.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        told = failure if failure is None or isinstance(failure, ResiDualError) else repr(failure)
        said = self.gathered(None if told is None else str(told))
        if failure is not None:
            raise failure
        for rank, text in enumerate(said):
            if text is not None:
                raise ResiDualError(f"process {rank} of {self.world} gave up: {text}")


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, bit for bit the same in each, on the tensor's own device."""
    total = tensor.detach().to(_reducing_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def _reducing_device() -> torch.device:
    """The CPU where the backend takes its tensors (gloo); else this process's own (NCCL: CUDA)."""
    kinds = [part.split(":")[0] for part in distributed.get_backend_config().split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
