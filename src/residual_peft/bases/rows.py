"""What a pass keeps of every batch, in blocks of memory that hold nothing else.

A small tensor that is kept of each batch lies between the batch's large ones, and the allocator can
give back none of the memory around it: a ViT-S/14 grew by 15 MB an image to keep 60 kB of each. So
rows are copied into large blocks, which the system's allocators map apart and give back.
"""

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BLOCK = 2**26  # bytes; glibc's largest block that may come from the heap is half of that
MAPPED = 2**23  # bytes from which on a tensor gets memory of its own during a pass
_M_MMAP_THRESHOLD = -3  # malloc.h


@cache
def give_back_large_tensors() -> None:
    """Let glibc map tensors of `MAPPED` bytes and more apart, from now on in this process.

    By itself it moves that bound up to 32 MB as soon as such a tensor is freed. Then the
    activations of a batch come from the heap, where whatever small thing is made meanwhile pins
    them: the peak of a pass through a ViT-S/14 grew by 3 MB an image where 80 kB were kept. Other
    allocators, and a bound that the user has set, stay as they are.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED)
    except (AttributeError, OSError, TypeError):
        return


@dataclass
class _Block:
    """Room for some rows, and the lengths of the parts that are in it."""

    room: Tensor  # (capacity, *S)
    parts: list[int]
    used: int = 0


class Rows:
    """Rows (N, *S) that come in parts (n, *S), on the CPU.

    >>> rows = Rows()
    >>> rows.add(torch.tensor([[1], [2]]))
    >>> rows.add(torch.tensor([[3]]))
    >>> len(rows), rows.joined().tolist()
    (3, [[1], [2], [3]])

    Args:
        expected: N if it is known; more or fewer rows are no mistake.
        block: the bytes of a block where it is not.
    """

    def __init__(self, expected: int | None = None, block: int = BLOCK) -> None:
        self.expected, self.block = expected, block
        self.blocks: list[_Block] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, part: Tensor) -> None:
        """Copy rows; they must be of the shape of those before, and may be of another dtype."""
        part = part.detach()
        if not self.blocks or self.blocks[-1].used + len(part) > len(self.blocks[-1].room):
            self.blocks.append(self._new(part))
        elif self.blocks[-1].room.dtype != part.dtype:
            for block in self.blocks:
                block.room = block.room.to(torch.promote_types(block.room.dtype, part.dtype))
        block = self.blocks[-1]
        block.room[block.used : block.used + len(part)].copy_(part)
        block.used += len(part)
        block.parts.append(len(part))
        self.count += len(part)

    def _new(self, part: Tensor) -> _Block:
        """Make a block for this part and more like it."""
        bytes_each = max(1, part[:1].numel() * part.element_size())
        capacity = max(len(part), self.block // bytes_each)
        if self.expected is not None and self.expected > self.count:
            capacity = max(len(part), self.expected - self.count)
        # `joined` takes the dtype of the last block, which is to hold what is in the others
        dtype = self.blocks[-1].room.dtype if self.blocks else part.dtype
        dtype = torch.promote_types(dtype, part.dtype)
        return _Block(torch.empty((capacity, *part.shape[1:]), dtype=dtype), [])

    def drained(self) -> Iterator[Tensor]:
        """The parts in their order, as they were added; what has been passed is given back."""
        while self.blocks:
            block = self.blocks.pop(0)
            yield from block.room[: block.used].split(block.parts)
            del block
        self.count = 0

    def joined(self) -> Tensor:
        """All rows (N, *S), taken out, one at least; no block outlives its own copy."""
        if not self.blocks:
            raise ValueError("there are no rows")
        room, used = self.blocks[0].room, self.blocks[0].used
        if len(self.blocks) == 1 and used >= 0.9 * len(room):
            self.blocks, self.count = [], 0
            return room if used == len(room) else room[:used]
        dtype = self.blocks[-1].room.dtype
        whole = torch.empty((self.count, *room.shape[1:]), dtype=dtype)
        del room
        start = 0
        for part in self.drained():
            whole[start : start + len(part)] = part
            start += len(part)
        return whole
