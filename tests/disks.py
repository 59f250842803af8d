"""Real disks that refuse: full, read-only, and without the right to write."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launch import ENVIRONMENT

NOBODY = 65534


@contextmanager
def disk(place: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; skips the test where nobody may mount one."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nobody may mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remounted_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


def as_nobody(imports: str, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Import as who we are, then run a program text as a user without rights.

    Skips the test where we are not root.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    become = f"import os, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    return subprocess.run(
        [sys.executable, "-c", "\n".join([imports, become, program]), *map(str, arguments)],
        cwd="/",
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def open_to_all(place: Path) -> None:
    """Let everybody look into pytest's own directories, which are private."""
    for folder in (place, *place.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
