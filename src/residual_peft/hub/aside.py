"""Names of what is not finished yet, by which a later run knows what a killed one left behind."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^\.(.*)\.residual-peft-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}$", re.DOTALL)
_FORGOTTEN = 7 * 86400  # seconds
_LONGEST = 100  # bytes of the name that it stands for; file systems take 255 in all


def aside_name(name: str) -> str:
    """A hidden name beside `name` that says which process of which machine is at work."""
    shown = os.fsdecode(os.fsencode(name)[:_LONGEST])
    process = os.getpid()
    marks = f"{_machine()}-{process}-{_started(process)}-{secrets.token_hex(4)}"
    return f".{shown}.residual-peft-{marks}"


def meant_by(path: str) -> str:
    """A path with `aside_name`s in it -> the path that they stand for."""
    parts: list[str] = []
    for part in Path(path).parts:
        found = _NAME.match(part)
        name = found[1] if found else part
        # a folder's new files are gathered beside it or, where it is there already, within it
        if not (found and parts and parts[-1] == name):
            parts.append(name)
    return str(Path(*parts))


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder under `aside_name`s; others' work stays.

    A process of this machine is asked for; of another one (or another container), what nobody has
    touched for a week is taken for left behind.
    """
    try:
        found = [entry.name for entry in os.scandir(folder) if ".residual-peft-" in entry.name]
    except OSError:
        return  # whoever writes there next will hear why
    for name in found:
        if (marks := _NAME.match(name)) and _is_left(folder / name, *marks.groups()[1:]):
            remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # the next sweep will try again
        path.unlink(missing_ok=True)


def _is_left(path: Path, machine: str, process: str, started: str) -> bool:
    if machine == _machine():
        return not _is_alive(int(process), int(started))
    try:
        return time.time() - path.lstat().st_mtime > _FORGOTTEN
    except OSError:
        return False


def _is_alive(process: int, started: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return _started(process) == started  # else its number has been given away again


def _started(process: int) -> int:
    """When a process began, in ticks since the machine did; 0 where that is not to be known."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        return int(stat.rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


@cache
def _machine() -> str:
    """Eight digits for this machine since it was started, and for this container on it."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
