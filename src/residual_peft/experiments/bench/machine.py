"""What a run was made with and on, and what memory it took."""

import os
import platform
from functools import cache
from pathlib import Path

import torch

from ...hub.machine import processor

PACKAGES = ("residual-peft", "torch", "transformers", "peft", "numpy", "scipy", "scikit-learn")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@cache
def machine() -> str:
    """System, processor, cores and accelerator, in words; no name of a host or user."""
    found = [platform.system(), processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    return ", ".join(filter(None, found))


def begin_peak() -> None:
    """Forget the peak of this process's memory so far, where the system lets us (Linux)."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory that this process had since `begin_peak`; 0 where Linux does not tell."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
