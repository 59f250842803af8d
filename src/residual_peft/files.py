"""Files that appear whole or not at all: written aside, then renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ResiDualError

PathLike = str | os.PathLike[str]


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


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ResiDualError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResiDualError(f"wanted the file '{path}', which is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResiDualError(
            f"'{path}' is not JSON ({error}); it may have been cut short."
        ) from None


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata.

    Raises:
        ResiDualError: the file is missing, cut short or not safetensors.
    """
    if not Path(path).is_file():
        raise ResiDualError(f"wanted the file '{path}', which is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ResiDualError(
            f"'{path}' is not a whole safetensors file ({error}); it may have been cut short or be "
            "of another kind: copy or download it again."
        ) from None


def write_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all."""
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            dict(metadata or {}),
        )
