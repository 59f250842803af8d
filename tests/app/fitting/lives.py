"""Fits that are killed, and what they leave: forked, so that imports are paid for once.

Run as a script: `lives.py FOLDER SPEC...`, where a spec says when the fit dies: `t0.7` after so
many of the seconds that a whole fit takes (as a share), `r12` at the twelfth rename.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from residual_peft.app.fitting import fit_adapter
from residual_peft.classifiers.zero_shot import ZeroShotClassifier
from residual_peft.hub.files import writing
from residual_peft.reporting.run_record import RunRecord
from residual_peft.solvers import training
from residual_peft.tuner import gains_of
from tests.app.fitting.photos import photos
from tests.training_case import save_clip


def fit(folder: Path, name: str, seed: int, trainer: bool) -> None:
    fit_adapter(
        str(folder / "model"),
        str(folder / "photos"),
        folder / "out" / name,
        templates=["a {}."],
        seed=seed,
        batch_size=8,
        trainer=trainer,
        method="gains",
    )


def state(adapter: Path) -> tuple[object, ...] | None:
    """All that a user of an adapter sees; None where there is none. Fails on anything between."""
    if not adapter.exists():
        return None
    loaded = ZeroShotClassifier.from_pretrained(adapter)
    record = RunRecord.load(adapter)
    gains = gains_of(loaded.model).detach()
    assert torch.equal(record.gains.gains, gains), "a record of another adapter"
    assert loaded.split is not None
    numbers = (gains.tolist(), loaded.class_embeddings.tolist(), record.after.tolist())
    return *numbers, loaded.fitted_on, loaded.split, len(record.examples)


def forked(work: Callable[[], None], when: Callable[[int], None] | None = None) -> int:
    """Do some work in a process of its own; its exit status, or minus the signal."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if when is not None:
        when(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def dying_at_rename(count: int) -> None:
    """End this process when so many files have got their names, before the next one gets it."""
    real, shown = writing._reveal, []

    def reveal(source: Path, destination: Path) -> None:
        if len(shown) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        shown.append(destination)
        real(source, destination)

    writing._reveal = reveal


def live(folder: Path, spec: str, seconds: float, trainer: bool, old: tuple, new: tuple) -> str:
    """Kill a fit at a moment; see what is there, go on, and see that all is as it should be."""
    out = folder / "out" / "a"

    def work() -> None:
        if spec[0] == "r":
            dying_at_rename(int(spec[1:]))
        fit(folder, "a", 0, trainer)

    def kill(process: int) -> None:
        time.sleep(float(spec[1:]) * seconds)
        os.kill(process, signal.SIGKILL)

    status = forked(work, kill if spec[0] == "t" else None)
    assert status in (0, -signal.SIGKILL), status
    found = state(out)
    assert found in (old, new), f"{spec}: neither the old nor the new"
    read = len(list((folder / "out" / ".a.reading").glob("*/*.safetensors")))
    assert forked(lambda: fit(folder, "a", 0, trainer)) == 0
    assert state(out) == new, f"{spec}: another adapter than that of a whole fit"
    left = sorted(path.name for path in (folder / "out").iterdir())
    assert left == ["a"], (spec, left)
    hidden = list(out.rglob(".*"))
    assert not hidden, (spec, hidden)
    which = "old" if found == old else "new"
    return f"{spec}: {'whole' if status == 0 else 'killed'}, {which}, {read} files kept"


def main(folder: Path, specs: list[str], trainer: bool) -> None:
    training.EPOCHS = 4
    save_clip(folder / "model")
    photos(folder / "photos", count=14)
    (folder / "out").mkdir()
    assert forked(lambda: fit(folder, "a", 1, False)) == 0
    shutil.copytree(folder / "out" / "a", folder / "old")
    started = time.perf_counter()
    assert forked(lambda: fit(folder, "b", 0, trainer)) == 0
    seconds = time.perf_counter() - started
    old, new = state(folder / "old"), state(folder / "out" / "b")
    assert old != new
    shutil.rmtree(folder / "out" / "b")
    for number, spec in enumerate(specs):
        shutil.rmtree(folder / "out" / "a", ignore_errors=True)
        before = old if number % 2 else None
        if before is not None:
            shutil.copytree(folder / "old", folder / "out" / "a")
        print(live(folder, spec, seconds, trainer, before, new), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:], sys.argv[2] == "trainer")
