"""A fit on a disk that refuses: one line, exit 2, and what was there stays."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from residual_peft import cli
from residual_peft.app.fitting import fit_adapter
from residual_peft.app.fitting import reading as fit_reading
from residual_peft.app.fitting import saving as fit_saving
from residual_peft.app.fitting import whole as fit_whole
from residual_peft.app.fitting.reading import room_for, shard_size
from residual_peft.errors import ResiDualError
from tests.app.fitting.lives import state
from tests.app.fitting.photos import content, photos
from tests.disks import as_nobody, disk, open_to_all, remounted_read_only
from tests.training_case import adapted_classifier, save_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    save_clip(folder / "model")
    photos(folder / "photos", count=14)
    fit_adapter(
        str(folder / "model"),
        str(folder / "photos"),
        folder / "a",
        templates=["a {}."],
        method="gains",
    )
    return folder


def command(root: Path, out: Path) -> list[str]:
    given = [
        "fit",
        "--method",
        "gains",
        "--model",
        root / "model",
        "--data",
        root / "photos",
        "--template",
        "a {}.",
    ]
    return [*map(str, given), "--out", str(out), "--batch-size", "4", "--num-workers", "0"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and the last line of standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["residual-peft", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return stopped.value.code, said.splitlines()[-1]


@pytest.fixture
def small(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB with the adapter on it."""
    with disk(tmp_path / "small", "size=24m") as place:
        shutil.copytree(root / "a", place / "a")
        yield place


def test_a_disk_without_room_for_what_is_read(root, small, monkeypatch, capsys) -> None:
    before = content(small / "a")
    monkeypatch.setattr(fit_reading, "room_for", lambda model, images: 10**9)
    status, line = run(capsys, *command(root, small / "a"))
    assert status == 2
    assert "what is read for 'a' needs about 1.0 GB of room, and" in line
    assert content(small / "a") == before
    assert [path.name for path in small.iterdir()] == ["a"]


@pytest.mark.parametrize("moment", ["reading", "saving"])
def test_a_disk_that_fills_up_meanwhile(moment, root, small, monkeypatch, capsys) -> None:
    before = content(small / "a")

    def fill() -> None:
        free = shutil.disk_usage(small).free
        (small / "filling").write_bytes(bytes(max(0, free - 8192)))

    name = {"reading": "ProcessedImages", "saving": "record_run"}[moment]
    place = {"reading": fit_reading, "saving": fit_saving}[moment]
    real = getattr(place, name)

    def instead(*args, **kwargs):
        fill()
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, instead)
    status, line = run(capsys, *command(root, small / "a"), "--seed", "3")
    monkeypatch.undo()
    assert status == 2
    assert "room" in line
    assert content(small / "a") == before
    (small / "filling").unlink()
    assert run(capsys, *command(root, small / "a"), "--seed", "3")[0] == 0
    assert state(small / "a")[-2].seed == 3
    assert [path.name for path in small.iterdir()] == ["a"]


def test_a_disk_that_becomes_read_only(root, small, monkeypatch, capsys) -> None:
    before = content(small / "a")
    whole = fit_whole
    real = whole._report

    def instead(*args, **kwargs):
        remounted_read_only(small)
        return real(*args, **kwargs)

    monkeypatch.setattr(whole, "_report", instead)
    status, line = run(capsys, *command(root, small / "a"), "--seed", "3")
    assert status == 2
    assert "read-only" in line
    assert content(small / "a") == before


def test_rights_that_are_not_there(root: Path, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    imports = "from residual_peft import cli; from residual_peft.app import fitting"
    imports += "; from transformers import CLIPModel"
    program = "sys.argv[0] = 'residual-peft'; cli.main()"
    shutil.copytree(root / "a", tmp_path / "mine")
    for out in (tmp_path / "new", tmp_path / "mine"):
        done = as_nobody(imports, program, *command(root, out))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "you have no right to do that there" in line
    assert sorted(os.listdir(tmp_path)) == ["mine"]


def test_the_room_that_is_asked_for_is_what_is_taken(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    classifier = adapted_classifier()
    asked = room_for(classifier.model, {"train": 100, "validation": 10, "test": 10})
    assert asked > room_for(classifier.model, {"train": 90, "validation": 10, "test": 10})
    taken = {}
    whole = sys.modules["residual_peft.app.fitting.ways"]
    real = whole._fitted

    def instead(*args, **kwargs):
        files = (tmp_path / ".a.reading").rglob("*.safetensors")
        taken["bytes"] = sum(path.stat().st_size for path in files)
        return real(*args, **kwargs)

    monkeypatch.setattr(whole, "_fitted", instead)
    seen = {}
    monkeypatch.setattr(
        fit_reading, "room_for", lambda m, n: seen.setdefault("asked", room_for(m, n))
    )
    fit_adapter(
        str(root / "model"),
        str(root / "photos"),
        tmp_path / "a",
        templates=["a {}."],
        method="gains",
    )
    assert 0 < taken["bytes"] < 2 * seen["asked"] + 10**5  # headers of small files, and the basis


def test_files_hold_a_few_batches() -> None:
    assert shard_size(10, 64) == 128
    assert shard_size(10**6, 64) % 64 == 0
    assert -(-(10**6) // shard_size(10**6, 64)) <= 256


def test_an_unknown_place_is_told_before_the_data_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResiDualError, match=r"'.*file' is a file; name another output"):
        fit_adapter("nobody/nothing", "nowhere", tmp_path / "file" / "out")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "cats" / "1.png").write_text("no image")
    (tmp_path / "link").symlink_to("photos")
    before = content(tmp_path)
    for data, out in (("photos", "link"), ("link", "photos/cats"), ("photos", "photos/cats/..")):
        for given in ((tmp_path / data, {}), ("nowhere", {"test": str(tmp_path / data)})):
            with pytest.raises(ResiDualError, match=r"for the adapter alone, got .*ther output"):
                fit_adapter("nobody/nothing", given[0], tmp_path / out, **given[1])
    (tmp_path / "photos" / "empty").mkdir()
    for out in ("photos/new", "photos/cats/new", "photos/empty"):  # apart from them
        with pytest.raises(ResiDualError, match="wanted at least two classes"):
            fit_adapter("nobody/nothing", tmp_path / "photos", tmp_path / out)
    assert content(tmp_path) == before
