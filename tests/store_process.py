"""One of several processes that write coordinates together: `accelerate launch -m` runs it."""

import sys
from pathlib import Path

from accelerate import PartialState

from residual_peft.data import ProcessedImages
from residual_peft.store import write_coordinates

from .training_case import adapted_classifier, task


def write(folder: Path, fit_basis: bool, shard_size: int, *, across_processes: bool) -> None:
    classifier = adapted_classifier()
    store = write_coordinates(
        classifier.model,
        ProcessedImages(task().train, classifier.image_processor, "train"),
        folder,
        fit_basis=fit_basis,
        shard_size=shard_size,
        batch_size=4,
        across_processes=across_processes,
    )
    assert len(store.load()) == len(store)


if __name__ == "__main__":
    PartialState()
    write(Path(sys.argv[1]), bool(int(sys.argv[2])), int(sys.argv[3]), across_processes=True)
    PartialState().destroy_process_group()
