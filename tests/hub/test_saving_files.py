"""A folder is written whole, whenever its writer is killed; what killed writers left goes."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from residual_peft.errors import ResiDualError
from residual_peft.hub.aside import aside_name
from residual_peft.hub.files import (
    atomic_directory,
    atomic_file,
    sweep,
    whole_directory,
    write_json,
    writing,
)
from tests.kills import killed

OLD = {"a.txt": "old a", "b.txt": "old b", "deeper/c.txt": "old c"}
NEW = {"a.txt": "new a", "b.txt": "new b", "deeper/c.txt": "new c", "d.txt": "new d"}
MINE = {"mine.txt": "mine", "deeper/mine.txt": "mine, too"}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def save(target: Path) -> None:
    with atomic_directory(target) as folder:
        put(folder, NEW)


@pytest.mark.parametrize("there", [{}, OLD, OLD | MINE], ids=["new", "old", "old and mine"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_it_leaves_the_old_or_the_new(
    tmp_path: Path, there: dict[str, str], after: bool
) -> None:
    outcomes = []
    for count in range(1, 100):
        target = tmp_path / f"{count}" / "out"
        target.parent.mkdir()
        put(target, there)
        status = killed(lambda target=target: save(target), count, after)
        mine = {name: text for name, text in there.items() if name in MINE}
        if status == 0:
            break
        assert status == -signal.SIGKILL
        found = content(whole_directory(target)) if target.is_dir() else {}
        shown = {name: text for name, text in found.items() if not name.startswith(".")}
        assert shown in (there, NEW | mine), (count, found)
        outcomes.append(shown == there)
        save(target)  # a rerun takes away what the killed one left
        assert content(target) == NEW | mine
        assert os.listdir(target.parent) == ["out"]
    assert outcomes == sorted(outcomes, reverse=True)  # old until a moment, then new
    assert set(outcomes) == {True, False}
    assert len(outcomes) >= (2 if not there else 10)


def test_a_save_that_cannot_be_finished_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "out", OLD | MINE)
    whole = tmp_path / "out" / ".residual-peft-save-00000000000000000001-aa"
    put(whole, NEW)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "not here")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_reveal", refuse)
        assert whole_directory(tmp_path / "out") == whole
        assert content(whole) == NEW
        assert content(tmp_path / "out") == OLD | MINE | {
            f"{whole.name}/{name}": text for name, text in NEW.items()
        }
    assert whole_directory(tmp_path / "out") == tmp_path / "out"
    assert content(tmp_path / "out") == NEW | MINE
    assert whole_directory(tmp_path / "absent") == tmp_path / "absent"


def test_the_last_of_two_saves_counts(tmp_path: Path) -> None:
    put(tmp_path / "out" / ".residual-peft-save-00000000000000000002-aa", {"a.txt": "second"})
    put(tmp_path / "out" / ".residual-peft-save-00000000000000000001-bb", {"a.txt": "first"})
    assert content(whole_directory(tmp_path / "out")) == {"a.txt": "second"}


def test_a_file_system_without_links_takes_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    put(tmp_path / "out", OLD | MINE)
    save(tmp_path / "out")
    assert content(tmp_path / "out") == NEW | MINE


def test_a_strangers_save_leads_nowhere_else(tmp_path: Path) -> None:
    put(tmp_path / "secret", {"c.txt": "secret"})
    put(tmp_path / "out" / ".residual-peft-save-1-aa", {"deeper/c.txt": "evil"})
    (tmp_path / "out" / "deeper").symlink_to(tmp_path / "secret")
    whole_directory(tmp_path / "out")
    assert content(tmp_path / "secret") == {"c.txt": "secret"}
    shutil.rmtree(tmp_path / "out" / ".residual-peft-save-1-aa")
    put(tmp_path / "elsewhere", {"a.txt": "evil"})
    (tmp_path / "out" / ".residual-peft-save-1-bb").symlink_to(tmp_path / "elsewhere")
    assert whole_directory(tmp_path / "out") == tmp_path / "out"
    assert not (tmp_path / "out" / "a.txt").exists()


def test_what_belongs_to_the_old_files_goes_with_them(tmp_path: Path) -> None:
    old = OLD | {"run/x.txt": "old", "run/in/y.txt": "old", "run/d.txt": "old", "e.txt": "old"}
    put(tmp_path / "out", old | MINE)
    put(tmp_path, {"secret.txt": "mine", "elsewhere/z.txt": "mine"})
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    gone = ["run", "e.txt", "deeper/c.txt", "absent", "", "..", "../secret.txt", "link/z.txt"]
    gone += [str(tmp_path / "secret.txt"), "a.txt", "absent/deep"]
    with atomic_directory(tmp_path / "out", gone=gone) as folder:
        put(folder, {"a.txt": "new a", "run/d.txt": "new d"})
    wanted = {"a.txt": "new a", "b.txt": "old b", "run/d.txt": "new d"}
    (tmp_path / "out" / "link").unlink()
    assert content(tmp_path / "out") == wanted | MINE
    assert not (tmp_path / "out" / "run" / "in").exists()
    assert (tmp_path / "secret.txt").read_text() == (tmp_path / "elsewhere" / "z.txt").read_text()


def test_what_is_in_the_way_is_named_before_anything_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "out", {"a.txt": "old a", "b.txt/c.txt": "mine"})
    with pytest.raises(ResiDualError, match=r"the file '.*out/b\.txt', got a folder; move it away"):
        save(tmp_path / "out")
    assert content(tmp_path / "out") == {"a.txt": "old a", "b.txt/c.txt": "mine"}
    shutil.rmtree(tmp_path / "out")
    put(tmp_path / "out", {"a.txt": "old a", "deeper": "mine"})
    with pytest.raises(ResiDualError, match=r"the folder '.*out/deeper' to write to, got a file"):
        save(tmp_path / "out")
    assert content(tmp_path / "out") == {"a.txt": "old a", "deeper": "mine"}


def left_by_a_dead_process(path: Path) -> Path:
    """A temporary name of a process that is no more."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(writer, aside_name(path.name).encode())
        os._exit(0)
    os.waitpid(process, 0)
    name = os.read(reader, 1000).decode()
    os.close(reader), os.close(writer)
    return path.parent / name


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    dead, alive = left_by_a_dead_process(tmp_path / "x.txt"), tmp_path / aside_name("x.txt")
    pid = f"-{os.getpid()}-"
    before, after = alive.name.split(pid)
    reused = tmp_path / f"{before}{pid}1-{'0' * 8}"  # another process had this number before
    machine = before.rsplit("-", 1)[1]
    elsewhere = tmp_path / (before.replace(machine, "0" * 8) + pid + after)
    forgotten = tmp_path / (before.replace(machine, "1" * 8) + pid + after)
    for path in (alive, elsewhere, forgotten, reused):
        path.write_text("x")
    put(dead, {"a": "folder", "deeper/b": "of files"})
    os.utime(forgotten, (0, 0))
    put(tmp_path, {".residual-peft-notes": "mine", ".x.txt.abc": "mine"})
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        alive.name,
        elsewhere.name,
        ".residual-peft-notes",
        ".x.txt.abc",
    }
    sweep(tmp_path / "absent")


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_folders_made_on_the_way_go_when_the_block_fails(tmp_path: Path, write) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), write(tmp_path / "there" / "a" / "b" / "out"):
        raise KeyError
    assert list((tmp_path / "there").iterdir()) == []


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    for name in ("x" * 250, "ä" * 120):
        write_json(tmp_path / name, 1)
        save(tmp_path / name[:-1])
        save(tmp_path / name[:-1])
        assert content(tmp_path / name[:-1]) == NEW


def test_names_that_are_not_utf8_are_written_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / name, {"class": name})
    assert (tmp_path / name).read_bytes() == b'{\n  "class": "caf\\udce9"\n}\n'
