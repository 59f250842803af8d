"""What a run was made with and on, and what memory it took."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ...hub.machine import processor

# Pillow: releases decode and enlarge alike, and shrink pictures differently (docs/log.md)
PACKAGES = (
    *("residual-peft", "torch", "transformers", "peft"),
    *("numpy", "scipy", "scikit-learn", "pillow"),
)
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@cache
def machine() -> str:
    """System, processor, cores and accelerator, in words; no name of a host or user."""
    found = [platform.system(), processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    return ", ".join(filter(None, found))


@dataclass
class Memory:
    """What this process took while a block ran, in bytes; 0 where the system does not say."""

    peak: int = 0  # the most
    mean: int = 0  # over time, by a look every so often
    accelerator: int = 0  # the most that tensors took there


@contextmanager
def watched_memory(every: float = 0.05) -> Iterator[Memory]:
    """Watch it, from a thread of its own; the figures are there once the block ends."""
    found, over = Memory(), threading.Event()
    looks = [_status("VmRSS:")]

    def look() -> None:
        while not over.wait(every):
            looks.append(_status("VmRSS:"))

    _begin_peak()
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        looks.append(_status("VmRSS:"))
        # the kernel's own peak may lag behind a look by some pages
        found.peak, found.mean = max(_status("VmHWM:"), *looks), sum(looks) // len(looks)
        if torch.cuda.is_available():
            found.accelerator = torch.cuda.max_memory_allocated()


def _begin_peak() -> None:
    """Forget the peaks so far, where the system lets us."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _RESET.write_text("5")
    except OSError:
        return


def _status(name: str) -> int:
    """A size that Linux tells of this process."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
