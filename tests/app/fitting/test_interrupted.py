"""A fit that is killed or interrupted leaves the old or the new, and goes on where it stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from residual_peft.app.fitting import fit_adapter, saving, ways
from residual_peft.app.fitting.reading import Keeping, keeping
from residual_peft.data import ProcessedImages
from residual_peft.errors import ResiDualError
from tests.app.fitting.lives import state
from tests.app.fitting.photos import content, photos
from tests.launch import ENVIRONMENT, ROOT, run
from tests.training_case import save_clip

LAST = 60
"""A fit gives so many files their names at most; kills after that let it end."""


def lives(folder: Path, way: str, *specs: str) -> list[str]:
    """Kill fits at these moments; each looks after itself, see `lives.py`."""
    done = run("-m", "tests.app.fitting.lives", folder, way, *specs, timeout=300 + 30 * len(specs))
    return [line for line in done.splitlines() if line.split(":")[0] in specs]  # not the Trainer's


def test_a_killed_fit_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    said = lives(tmp_path, "coordinates", "r3", "r11", "t0.6")
    assert all(": killed, " in line for line in said[:2])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["coordinates", "trainer"])
def test_thirty_kills_at_random_and_one_at_every_rename(way: str, tmp_path: Path) -> None:
    generator = random.Random(14)
    moments = [f"t{generator.random():.3f}" for _ in range(30)]
    said = lives(tmp_path, way, *moments, *(f"r{count}" for count in range(LAST)))
    ends = {line.split(": ")[1].rsplit(", ", 1)[0] for line in said}
    assert {"killed, old", "killed, new", "whole, new"} <= ends
    kept = [int(line.rsplit(", ", 1)[1].split()[0]) for line in said]
    assert max(kept) >= 4  # files: what was read is not lost


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    save_clip(folder / "model")
    photos(folder / "photos", count=14)
    fit(folder, folder / "whole")
    return folder


def fit(root: Path, out: Path, **options):
    given = {"templates": ["a {}."], "batch_size": 4, "num_workers": 0} | options
    return fit_adapter(str(root / "model"), str(root / "photos"), out, method="gains", **given)


class Counted:
    """Counts the images that are decoded, and may interrupt at one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last, self.error = 0, 10**9, KeyboardInterrupt
        real = ProcessedImages.__getitem__

        def item(images: ProcessedImages, index: int):
            self.count += 1
            if self.count > self.last:
                raise self.error
            return real(images, index)

        monkeypatch.setattr(ProcessedImages, "__getitem__", item)

    def start(self, last: int = 10**9, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.count, self.last, self.error = 0, last, error


def interrupt(root: Path, out: Path, counted: Counted, last: int, **options) -> str:
    counted.start(last)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(root, out, **options)
    counted.start()
    return str(stopped.value)


@pytest.mark.parametrize("trainer", [False, True])
def test_the_same_call_reads_on_where_it_stopped(
    trainer: bool, root: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    counted, out = Counted(monkeypatch), tmp_path / "a"
    said = interrupt(root, out, counted, 29, trainer=trainer)
    assert said == (
        f"interrupted; what was read is kept in '{tmp_path / '.a.reading'}', and the same command "
        "goes on where it stopped."
    )
    assert not out.exists()
    fit(root, out, trainer=trainer)
    if not trainer:
        assert counted.count == 42 - 24  # 29 images are three whole files of eight
        assert state(out) == state(root / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_each_image_is_decoded_once(root: Path, tmp_path: Path, monkeypatch) -> None:
    counted = Counted(monkeypatch)
    fit(root, tmp_path / "a")
    assert counted.count == 42


def test_before_any_image_there_is_nothing_to_keep(root: Path, tmp_path: Path, monkeypatch) -> None:
    counted = Counted(monkeypatch)
    said = interrupt(root, tmp_path / "a", counted, 3)
    assert said == "interrupted before any image was read."
    assert not list(tmp_path.iterdir())


def test_what_was_read_of_another_fit_is_read_anew(
    root: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    counted, out = Counted(monkeypatch), tmp_path / "a"
    shutil.copytree(root / "photos", tmp_path / "photos")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(root / "model", other / "model")
    shutil.copytree(root / "photos", other / "photos")
    save_clip(other / "model", seed=5)
    changes = [
        ({"seed": 3}, root, "settings, seed, images"),
        ({"batch_size": 5}, root, "batch size"),
        ({"templates": ["the {}."]}, root, "templates"),
        ({}, other, "model"),
    ]
    for options, where, what in changes:
        interrupt(root, out, counted, 29)
        caplog.clear()
        fit(where, out, **options)
        assert counted.count == 42
        assert f"had read images with other {what}: all are read anew" in caplog.text
        assert state(out) != state(root / "whole")
        shutil.rmtree(out)
    interrupt(root, out, counted, 29)
    (tmp_path / ".a.reading" / "settings.json").write_text("{")
    fit(root, out)
    assert counted.count == 42
    assert state(out) == state(root / "whole")


def test_an_error_that_a_user_mends_keeps_what_was_read(root, tmp_path, monkeypatch) -> None:
    counted, out = Counted(monkeypatch), tmp_path / "a"
    counted.start(29, ResiDualError)
    with pytest.raises(ResiDualError):
        fit(root, out)
    counted.start()
    fit(root, out)
    assert counted.count == 42 - 24


def test_one_fit_at_a_time(root: Path, tmp_path: Path) -> None:
    with keeping(tmp_path / "a"):
        with pytest.raises(ResiDualError, match=r"another fit is writing to '.*a' \(it holds"):
            fit(root, tmp_path / "a")
        fit(root, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    assert not Keeping(tmp_path / "b").holds_images


def test_ctrl_c_on_the_command_line(root: Path, tmp_path: Path) -> None:
    command = ["fit", "--model", root / "model", "--data", root / "photos", "--template", "a {}."]
    command += ["--out", tmp_path / "a", "--batch-size", "1", "--num-workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "residual_peft.cli", *map(str, command)],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        # a shell's background jobs, as this test may be in, ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    read = tmp_path / ".a.reading" / "train"
    while process.poll() is None and not list(read.glob("*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"residual-peft: interrupted; what was read is kept in '{tmp_path / '.a.reading'}', and "
        "the same command goes on where it stopped."
    )
    settings = json.loads((tmp_path / ".a.reading" / "settings.json").read_text())
    assert settings["batch size"] == 1
    assert not (tmp_path / "a").exists()
    fit(root, tmp_path / "a", batch_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_fit_leaves_the_old_adapter(root: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "a"
    shutil.copytree(root / "whole", out)
    (out / "README.md").write_text("my own card")
    (out / "notes.txt").write_text("mine")
    before, counted = content(out), Counted(monkeypatch)
    interrupt(root, out, counted, 29, seed=2)
    assert content(out) == before
    fit(root, out, seed=2)
    after = content(out)
    assert after["notes.txt"] == b"mine"
    assert b"my own card" in after["README.md"]  # PEFT adds to it
    assert after["adapter_model.safetensors"] != before["adapter_model.safetensors"]
    record = json.loads(after["run/run.json"])
    shown = [record.get(kind, []) for kind in ("examples", "mistakes", "suspicious")]
    names = {example["file"] for kind in shown for example in kind}
    assert {os.path.basename(n) for n in after if n.startswith("run/examples")} == names


@pytest.mark.parametrize("when", ["on_epoch_end", "on_train_end"])
def test_the_trainer_goes_on_from_its_last_checkpoint(
    when: str, root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 5)
    fit(root, tmp_path / "whole", trainer=True)
    real, epochs = ways.trainer_kwargs, []

    class Watching(TrainerCallback):
        dying = True

        def on_epoch_begin(self, args, state, control, **kwargs):
            epochs.append(round(state.epoch or 0))

    def interrupt(self, args, state, control, **kwargs):
        if self.dying and (when == "on_train_end" or state.epoch >= 3):
            raise KeyboardInterrupt

    setattr(Watching, when, interrupt)

    def watched(*args, **kwargs):
        found = real(*args, **kwargs)
        return found | {"callbacks": [*found["callbacks"], Watching()]}

    monkeypatch.setattr(ways, "trainer_kwargs", watched)
    counted = Counted(monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on where it stopped"):
        fit(root, tmp_path / "a", trainer=True)
    assert epochs == list(range(3 if when == "on_epoch_end" else 5))
    Watching.dying = False
    epochs.clear()
    counted.start()
    fit(root, tmp_path / "a", trainer=True)
    assert epochs == ([2, 3, 4] if when == "on_epoch_end" else [])
    assert state(tmp_path / "a") == state(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "whole"]


def test_gains_that_the_trainer_had_found_are_saved(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("residual_peft.solvers.training.EPOCHS", 2)
    fit(root, tmp_path / "whole", trainer=True)
    real = saving.record_run
    monkeypatch.setattr(saving, "record_run", lambda *given, **options: [][0])
    with pytest.raises(IndexError):
        fit(root, tmp_path / "a", trainer=True)
    monkeypatch.setattr(saving, "record_run", real)
    monkeypatch.setattr(ways.Trainer, "train", None)  # not called again
    fit(root, tmp_path / "a", trainer=True)
    assert state(tmp_path / "a") == state(tmp_path / "whole")
