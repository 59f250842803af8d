"""Images decoded beside the model: in processes of their own where that pays and can be.

Decoding is the slow part on photos. `decoded` hands out pieces of a few images, in order, and keeps
only a bounded number under way. Its processes

- are forked on Linux, where that takes milliseconds: they run PIL and numpy alone, on one thread,
  and touch neither CUDA nor a pool of threads that was there before. Elsewhere, or where
  `multiprocessing.set_start_method` was called, they are started as that says, and do not import
  the caller's script again (which would run it once more where it has no `__main__` guard);
- send plain bytes through pipes: containers have 64 MB of shared memory, two batches fill it.

Where no process can be started (in a daemonic one, without semaphores, for a data set that cannot
be pickled and must be) images are decoded in this one.
"""

import io
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import ResiDualError
from .images import UnreadableImage

logger = logging.getLogger(__name__)

PIECE = 8  # images that are handed over together
AHEAD = 2  # batches that are under way
SECONDS = {"fork": 2.0}
"""Seconds of decoding that must lie ahead for processes to pay, by how they are started."""
SECONDS_OTHERWISE = 30.0  # each imports torch and the rest
LARGEST_PICKLE = 2**28
_TOKENIZERS = "TOKENIZERS_PARALLELISM"
_hiding = threading.Lock()


class Unread(NamedTuple):
    """An image that could not be read."""

    row: int
    file: str
    reason: str
    message: str

    @classmethod
    def of(cls, row: int, error: UnreadableImage) -> "Unread":
        """From the error that it raised."""
        return cls(row, error.file, error.reason, str(error))


class Images(Protocol):
    """What is decoded: an item is all that a model takes of an image, or an UnreadableImage."""

    name: str  # for messages

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> "dict[str, Any] | Skipped": ...


@dataclass(frozen=True)
class Skipped:
    """Stands in a list of items for an image that could not be read."""

    unread: Unread
    images: Images


@dataclass(frozen=True)
class Piece:
    """A few images of one batch."""

    tensors: dict[str, Tensor]  # each (n, ...); none where no image could be read
    rows: list[int]
    unread: list[Unread]


def read_piece(images: Images, rows: Sequence[int]) -> Piece:
    """Decode a few images here and now."""
    items: list[dict[str, Any]] = []
    read, unread = [], []
    for row in rows:
        try:
            item = images[row]
        except UnreadableImage as error:
            unread.append(Unread.of(row, error))
            continue
        if isinstance(item, Skipped):
            unread.append(item.unread)
        else:
            items.append(item)
            read.append(row)
    names = items[0] if items else ()
    tensors = {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in names}
    return Piece(tensors, read, unread)


def decoded(
    images: Images, batches: Sequence[Sequence[int]], workers: int | None
) -> Iterator[list[Piece]]:
    """The pieces of each batch of rows, in order.

    With `workers` so many processes decode; 0 none, None as many as cores may be used where that
    pays.

    Raises:
        ResiDualError: a process died.
    """
    pieces = [
        rows[start : start + PIECE] for rows in batches for start in range(0, len(rows), PIECE)
    ]
    stream = _stream(images, pieces, max(map(len, batches), default=1), workers)
    for rows in batches:
        yield [next(stream) for _ in range(-(-len(rows) // PIECE))]


def _stream(
    images: Images, pieces: list[Sequence[int]], batch: int, workers: int | None
) -> Iterator[Piece]:
    """Decode all pieces: the first here, which tells whether processes pay for the others."""
    done = 0
    if workers is None:
        seconds: list[float] = []
        while done < min(2, len(pieces)):  # the first image of all brings imports along
            before = time.perf_counter()
            piece = read_piece(images, pieces[done])
            seconds.append((time.perf_counter() - before) / len(pieces[done]))
            done += 1
            yield piece
            if done == 1 and seconds[0] * sum(map(len, pieces)) < min(SECONDS.values()):
                break
        ahead = sum(map(len, pieces[done:])) * min(seconds, default=0.0)
        pays = ahead >= SECONDS.get(start_method(), SECONDS_OTHERWISE)
        workers = usable_cores() if pays else 0
    left = pieces[done:]
    count = min(workers, len(left))
    # a daemonic process may have none, and pickles must travel
    alone = multiprocessing.current_process().daemon
    able = count and not alone and (start_method() == "fork" or travels(images))
    started = _started(images, left, count, batch) if able else None
    yield from (read_piece(images, rows) for rows in left) if started is None else started


def start_method() -> str:
    """How processes are started: as the program says, else forked on Linux."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or ("fork" if sys.platform == "linux" else "spawn")


def usable_cores() -> int:
    """How many cores this process may use, its share where several run side by side."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = float(count or 1)
    try:  # the share that a container has
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        pass  # no such file, or "max"
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's
    return max(1, math.ceil(cores / (int(beside) if beside.isdecimal() and int(beside) else 1)))


def travels(images: Any) -> bool:
    """Whether something can be pickled for another process that does not know this script."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            for thing in (value, type(value)):
                if getattr(thing, "__module__", None) == "__main__":
                    raise pickle.PicklingError("defined in the script")
            return NotImplemented

    class Counting(io.RawIOBase):
        size = 0

        def write(self, content: Any) -> int:
            count = memoryview(content).nbytes
            self.size += count
            if self.size > LARGEST_PICKLE:
                raise pickle.PicklingError("too large to be sent to each process")
            return count

    try:
        Pickler(Counting(), protocol=pickle.HIGHEST_PROTOCOL).dump(images)
    except Exception as error:  # whatever its own __reduce__ raises
        logger.info("images are decoded in this process: %s", error)
        return False
    return True


class _Pieces(torch.utils.data.Dataset):
    """Pieces as bytes, for a DataLoader."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitems__(self, rows: list[int]) -> Any:
        piece = read_piece(self.images, rows)
        return {name: _packed(t) for name, t in piece.tensors.items()}, piece.rows, piece.unread


def _packed(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], Any]:
    flat = tensor.contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy()


def _unpacked(packed: tuple[torch.dtype, tuple[int, ...], Any]) -> Tensor:
    dtype, shape, content = packed
    return torch.from_numpy(np.asarray(content)).view(dtype).reshape(shape)


def _as_it_is(value: Any) -> Any:
    return value


def _begin(worker: int) -> None:
    """In a new process: an interrupt is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _started(
    images: Images, pieces: list[Sequence[int]], count: int, batch: int
) -> Iterator[Piece] | None:
    """All pieces from processes that have been started; None where none could be."""
    method = start_method()
    loader = DataLoader(
        _Pieces(images),
        batch_sampler=[list(rows) for rows in pieces],
        num_workers=count,
        collate_fn=_as_it_is,
        prefetch_factor=max(2, -(-AHEAD * batch // (PIECE * count))),
        multiprocessing_context=method,
        generator=torch.Generator(),  # the caller's random numbers do not depend on any of this
        worker_init_fn=_begin,
    )
    try:
        with _starting(method):
            found = iter(loader)
    except OSError as error:  # no room for another process, no semaphores
        logger.warning("images are decoded in this process, others could not start (%s)", error)
        return None
    return _received(found)


def _received(batches: Iterator[Any]) -> Iterator[Piece]:
    try:
        for packed, rows, unread in batches:
            yield Piece({name: _unpacked(t) for name, t in packed.items()}, rows, unread)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ResiDualError(
            f"a process that decodes images has died ({str(error).splitlines()[0]}); where memory "
            "ran out, decode with fewer processes, or with num_workers=0 in this one."
        ) from error


@contextmanager
def _starting(method: str) -> Iterator[None]:
    """What is different while processes start."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        if method == "fork":
            # of threads that are there: the new processes use none of them
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            if _TOKENIZERS not in os.environ:  # which would print a warning in each process
                os.environ[_TOKENIZERS] = "false"
                stack.callback(os.environ.pop, _TOKENIZERS, None)
        else:
            # new processes import the file of `__main__`, if there is one: here there is none
            stack.enter_context(_hiding)
            stack.callback(sys.modules.__setitem__, "__main__", sys.modules["__main__"])
            sys.modules["__main__"] = types.ModuleType("__main__")
        yield
