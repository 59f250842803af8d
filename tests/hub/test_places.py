"""A place to write to is tried by writing there; a system's refusal is named."""

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from residual_peft.cli.commands import one_line
from residual_peft.errors import ResiDualError
from residual_peft.hub.places import check_place, number_of, reading_place, reason_of
from tests.disks import as_nobody, disk, open_to_all, remounted_read_only


def refusal(place: Path) -> str:
    with pytest.raises(ResiDualError) as refused:
        check_place(place)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    assert check_place(tmp_path / "there") == tmp_path / "there"
    assert check_place(tmp_path / "new") == tmp_path / "new"
    monkeypatch.chdir(tmp_path)
    assert check_place("new") == tmp_path / "new"
    assert check_place("new/and/deep") == tmp_path / "new" / "and" / "deep"
    assert check_place(".") == tmp_path
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_place("~/there") == tmp_path / "there"


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"got the file '{tmp_path / 'file'}'; name another" in refusal(tmp_path / "file")
    assert "'/dev/null' is a file; name another output" in refusal(Path("/dev/null/no/out"))
    assert "the name is too long" in refusal(tmp_path / ("a" * 300))


def test_a_full_disk_and_one_without_much_room(tmp_path: Path) -> None:
    with disk(tmp_path / "small", "size=1m") as small:
        assert "'out' needs" not in refusal(small / "out")
        assert "about 17 MB of room, and 1.0 MB are free on" in refusal(small / "out")
        check_place(small / "out", room=1000)
        (small / "all").write_bytes(bytes(2**20))
        assert "cannot write" in refusal(small / "out")
        assert "no space is left on that disk; make room" in refusal(small / "out")
        for write in (safetensors.torch.save_file, torch.save):
            with pytest.raises(Exception) as refused:  # noqa: PT011, which library raises what
                write({"a": torch.zeros(10**5)}, str(small / "tensors"))
            assert number_of(refused.value) == errno.ENOSPC
            assert "no space is left" in one_line(refused.value)
        with pytest.raises(OSError, match="No space left") as refused:
            (small / "more").write_bytes(bytes(10**5))
        assert "stopped: no space is left on that disk" in one_line(refused.value)


def test_a_read_only_file_system(tmp_path: Path) -> None:
    with disk(tmp_path / "fixed", "size=64m") as fixed:
        (fixed / "out").mkdir()
        remounted_read_only(fixed)
        for place in (fixed / "out", fixed / "new"):
            assert "that file system is mounted read-only; name a place" in refusal(place)


def test_no_right_to_write(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    done = as_nobody(
        "from residual_peft.hub.places import check_place",
        "check_place(sys.argv[1])",
        tmp_path / "out",
    )
    assert "you have no right to do that there; name another place" in done.stderr.splitlines()[-1]


def test_a_folder_of_ones_own_below_one_that_is_not(tmp_path: Path) -> None:
    """As a volume that is mounted into a container."""
    open_to_all(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    tmp_path.chmod(0o755)
    done = as_nobody(
        "from residual_peft.hub.places import check_place, reading_place",
        "print(reading_place(check_place(sys.argv[1])))",
        mine,
    )
    assert done.stdout.split() == [str(mine / ".mine.reading")], done.stderr
    assert reading_place(mine) == tmp_path / ".mine.reading"
    assert list(mine.iterdir()) == []


def test_only_what_a_system_refused_is_a_users_to_mend() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")
    wrapped = RuntimeError("could not save")
    wrapped.__cause__ = full
    assert number_of(wrapped) == errno.ENOSPC
    bugs = (KeyError("a"), OSError("?"), OSError(errno.EBADF, "?"), RuntimeError("is a directory"))
    for bug in bugs:
        assert one_line(bug) is None
    assert "'here'" in reason_of(OSError(errno.EROFS, "", "here"))
