"""A disk that is full, read-only or forbidden: one line with place and remedy, and no trace."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from residual_peft.bases.basis import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.hub import DEMO_MODEL, local_directory
from residual_peft.hub.files import (
    atomic_directory,
    atomic_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from residual_peft.towers.units import Unit
from tests.models import clip_model
from tests.pairs import table
from tests.records import record

root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts and drops rights"
)
NOBODY = 65534
LARGE = {"a": torch.zeros(500_000)}  # 2 MB


def said_by(act: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> str:
    """The text of the ResiDualError that `act` ends in, in a process of its own."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        try:
            prepare()
            act()
            text = "nothing was raised"
        except ResiDualError as error:
            text = str(error)
        except BaseException:
            text = "another error: " + traceback.format_exc()
        os.write(writer, text.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(process, 0)
    return text


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path]:
    """A disk of 1 MB, nearly full."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("no right to mount a small disk")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def large_basis() -> SpectralBasis:
    basis = SpectralBasis.from_weights(clip_model())
    components = [torch.zeros(20_000, basis.width), *basis.components[1:]]
    eigenvalues = [torch.zeros(20_000), *basis.eigenvalues[1:]]
    return SpectralBasis(**{**vars(basis), "components": components, "eigenvalues": eigenvalues})


def many_files(folder: Path) -> None:
    with atomic_directory(folder) as inside:
        for number in range(400):
            (inside / f"{number}").write_bytes(b"x" * 8192)


def torch_saved(path: Path) -> None:
    with atomic_file(path) as temporary:
        torch.save(LARGE, temporary)


WRITERS: dict[str, Callable[[Path], object]] = {
    "tensors": lambda folder: write_tensors(folder / "x.safetensors", LARGE),
    "json": lambda folder: write_json(folder / "x.json", "x" * 2_000_000),
    "torch": lambda folder: torch_saved(folder / "x.pt"),
    "directory": lambda folder: many_files(folder / "out"),
    "basis": lambda folder: large_basis().save_pretrained(folder / "basis"),
    "record": lambda folder: record(images=60_000, class_names=("a", "b")).save(folder / "run"),
}


@root_only
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_holds_what_it_held(small_disk: Path, name: str) -> None:
    text = said_by(lambda: WRITERS[name](small_disk))
    assert text.startswith(f"could not read or write '{small_disk}"), text
    assert "no space is left on that disk; make room" in text
    assert "residual-peft-" not in text  # the file by its own name
    assert list(small_disk.rglob("*")) == []


@root_only
def test_a_full_disk_leaves_the_old_files(small_disk: Path) -> None:
    write_json(small_disk / "out" / "0", "old")
    many = said_by(lambda: many_files(small_disk / "out"))
    assert "no space is left" in many
    assert [p.name for p in (small_disk / "out").iterdir()] == ["0"]
    assert read_json(small_disk / "out" / "0") == "old"
    (small_disk / "out" / "0").unlink()
    (small_disk / "out").rmdir()


@table("name", WRITERS)
def test_a_limit_of_a_files_size_is_named(tmp_path: Path, name: str) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    text = said_by(lambda: WRITERS[name](tmp_path), limit)
    # torch.save says of all these alike that it could not write
    assert "raise the limit (ulimit -f)" in text or (name == "torch" and "make room" in text), text
    assert list(tmp_path.rglob("*")) == []


@root_only
@table("name", WRITERS)
def test_lost_rights_are_named(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o005:
            folder.chmod(0o755)  # pytest's folders are for root alone
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o555)
    text = said_by(lambda: WRITERS[name](forbidden), lambda: os.setuid(NOBODY))
    assert text.startswith(f"could not read or write '{forbidden}"), text
    assert "you have no right to do that there" in text
    secret = tmp_path / "secret.json"
    write_json(secret, 1)
    secret.chmod(0o600)
    for read in (read_json, read_tensors):
        text = said_by(lambda read=read: read(secret), lambda: os.setuid(NOBODY))
        assert text.startswith(f"could not read or write '{secret}' (Permission denied)"), text


@root_only
def test_a_disk_that_is_read_only_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        for write in WRITERS.values():
            text = said_by(lambda write=write: write(small_disk))
            assert "that file system is mounted read-only" in text, text
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)


@table("name", WRITERS)
def test_names_and_places_that_cannot_be_are_named(tmp_path: Path, name: str) -> None:
    write = WRITERS[name]
    (tmp_path / "file").write_text("mine")
    text = said_by(lambda: write(tmp_path / "file" / "deeper"))
    assert f"'{tmp_path / 'file'}" in text
    assert "a part of that path is a file" in text or "something else of that name" in text, text
    text = said_by(lambda: write(tmp_path / ("x" * 300)))
    assert "the name is too long; choose a shorter one" in text, text
    for taken in ("x.safetensors", "x.json", "x.pt"):
        (tmp_path / taken).mkdir()
    if name in ("tensors", "json", "torch"):
        text = said_by(lambda: write(tmp_path))
        assert "it is a directory" in text, text
        assert "residual-peft-" not in text
    names = {p.name for p in tmp_path.iterdir()}
    assert names <= {"file", "x.safetensors", "x.json", "x.pt", "out", "basis", "run"}


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    for bug in (TypeError("a bug"), OSError("without a number"), ConnectionResetError(104, "x")):
        with pytest.raises(type(bug)), atomic_file(tmp_path / "x"):
            raise bug
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResiDualError, match="unknown unit kind"):
        Unit("bug")


def test_nothing_is_written_where_a_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "residual_basis.json").write_text("[")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(ResiDualError):
        SpectralBasis.from_pretrained(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before
    assert local_directory(DEMO_MODEL).is_dir()


@root_only
def test_the_command_line_ends_with_one_line_and_2(small_disk: Path) -> None:
    command = [sys.executable, "-m", "residual_peft.cli", "demo", "--out", str(small_disk / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("residual-peft: ")
    assert list(small_disk.rglob("*")) == []
