"""Files that appear whole or not at all: written aside, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ResiDualError
from .looking import PathLike


def _reveal(source: Path, destination: Path) -> None:
    """Rename, with the rights that the user's umask gives (temporary files are private)."""
    mask = os.umask(0)
    os.umask(mask)
    source.chmod(0o666 & ~mask)
    os.replace(source, destination)


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place once the block has succeeded."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _reveal(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Yield a temporary directory whose files move into `path` once the block has succeeded.

    Files already in `path` stay, unless one of the same name replaces them.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ResiDualError(
            f"wanted a directory to write to, got the file '{target}'; name another output."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        target.mkdir(exist_ok=True)
        for source in sorted(p for p in temporary.rglob("*") if p.is_file()):
            destination = target / source.relative_to(temporary)
            destination.parent.mkdir(parents=True, exist_ok=True)
            _reveal(source, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
