"""What a run was made with and on, in words."""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def processor() -> str:
    """As its maker calls it, where the system tells; else its architecture."""
    named = value_in(Path("/proc/cpuinfo"), "model name")
    return named or platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python and packages -> their versions."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@cache
def machine() -> str:
    """System, processor, cores and accelerator, in words; no name of a host or user."""
    found = [platform.system(), processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_device_name())
    return ", ".join(filter(None, found))


def value_in(path: Path, name: str) -> str:
    """What a file of Linux's says under a name; empty where there is none."""
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
