"""Writes coordinates in processes that SIGKILL ends: `python -m tests.store_process out basis`.

Forked from one that has imported everything and computed nothing, so that each takes no time.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from residual_peft.data import ProcessedImages
from residual_peft.hub.files import writing as files
from residual_peft.solvers.store import write_coordinates
from tests.training_case import adapted_classifier, task


class Deadly(ProcessedImages):
    """Ends the process at an image."""

    last = 10**9

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def write(folder: Path, fit_basis: bool, last_image: int) -> None:
    classifier = adapted_classifier()
    data = Deadly(task().train, classifier.image_processor, "train")
    data.last = last_image
    write_coordinates(
        classifier.model, data, folder, fit_basis=fit_basis, shard_size=10, batch_size=4
    )


def die_after(count: int) -> None:
    """End the process when `count` files have appeared and the next one lies there under its
    temporary name."""
    real, shown = files._reveal, []

    def reveal(source: Path, destination: Path) -> None:
        if len(shown) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        shown.append(destination)
        real(source, destination)

    files._reveal = reveal


def life(folder: Path, fit_basis: bool, *, images: int = 10**9, count: int = 10**9) -> int:
    """How a process ended that was to die at an image or at a file: 0, or minus the signal."""
    process = os.fork()
    if process == 0:
        try:
            die_after(count)
            write(folder, fit_basis, images)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# of each life after three that die at images: files that appear, and what is cut off then
LIVES = {
    False: [(0, "shard-00002"), (1, "shard-00003"), (1, "manifest.json")],
    True: [
        (0, "raw-00002"),
        (1, "raw-00003"),
        (1, "basis"),  # one of its files is there under the temporary name of its folder
        (2, "basis"),  # both are
        (3, "shard-00000"),
        (4, "manifest.json"),
    ],
}


if __name__ == "__main__":
    out, fit_basis = Path(sys.argv[1]), bool(int(sys.argv[2]))
    assert life(out / "whole", fit_basis) == 0
    for image in (0, 5, 23):
        assert life(out / "killed", fit_basis, images=image) == -signal.SIGKILL
    for count, cut in LIVES[fit_basis]:
        assert life(out / "killed", fit_basis, count=count) == -signal.SIGKILL
        (left,) = (out / "killed").glob(".*")  # and nothing of the lives before
        assert left.name.startswith(f".{cut}"), (count, left)
    assert life(out / "killed", fit_basis) == 0
