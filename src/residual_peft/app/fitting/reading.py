"""The images of a fit, each read once, and what is read, kept until the fit has succeeded."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...classifiers.backbones import device_of
from ...data import ImageData, ProcessedImages, SkippedImage
from ...errors import ResiDualError
from ...hub.files import write_json
from ...hub.places import LEAST_ROOM, check_room, reading_place
from ...solvers.store import (
    CoordinateStore,
    adapter_digest,
    coordinate_bytes,
    data_digest,
    processor_digest,
    write_coordinates,
)
from ...towers.registry import find_tower
from ...tuner import readout_config, readout_state
from .task import Task

try:
    import fcntl
except ImportError:  # Windows, where two fits at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

TITLES = {
    "train": "the training split",
    "validation": "the validation split",
    "test": "the test split",
}
_SHARDS = 256  # at most so many of a split, and each of at least two batches
_SETTINGS, _LOCK = "settings.json", "lock"


class Keeping:
    """The hidden directory `.OUT.reading` beside an output, the target.

    Attributes:
        folder: it; in it lie the coordinates of each split, under its name.
        checkpoints: where the Trainer leaves its own.
        trained: where the gains lie once the Trainer is done.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.folder = target, reading_place(target)
        self.checkpoints = self.folder / "trainer"
        self.trained = self.folder / "trained.safetensors"

    def begin(self, settings: Mapping[str, Any]) -> bool:
        """Go on with what is there if it belongs to the same fit, or remove it with a word.

        Settings are JSON-able: all that what is read depends on, name -> value; the names are told
        where they differ. Whether there is something to go on with.
        """
        wanted = json.loads(json.dumps(dict(settings)))
        path = self.folder / _SETTINGS
        there = _json_in(path)
        if there == wanted:
            return self.holds_images
        if self.holds_images:
            other = [n for n in wanted if there is None or there.get(n) != wanted[n]]
            logger.warning(
                "an interrupted fit to '%s' had read images with other %s: all are read anew",
                self.target.name,
                ", ".join(other) or "settings",
            )
        for part in self.folder.iterdir():
            if part.name != _LOCK:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        write_json(path, wanted)
        return False

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint: the Trainer writes its state last."""
        found = [
            folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if folder.name.rpartition("-")[2].isdigit()
            and _json_in(folder / "trainer_state.json") is not None
        ]
        return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    @property
    def holds_images(self) -> bool:
        """Whether something was read that would have to be read again."""
        return any(self.folder.glob("*/*.safetensors"))


@contextmanager
def keeping(target: Path) -> Iterator[Keeping]:
    """Keep what the block reads until it succeeds; one fit at a time.

    Raises:
        ResiDualError: another fit is writing to the same place.
    """
    kept = Keeping(target)
    handle, succeeded = _locked(kept), False
    try:
        yield kept
        succeeded = True
    finally:
        if succeeded or not kept.holds_images:
            shutil.rmtree(kept.folder, ignore_errors=True)
        os.close(handle)


def _locked(kept: Keeping) -> int:
    """Hold the directory for this process, which loses it however it ends."""
    while True:
        with contextlib.suppress(FileExistsError):
            kept.folder.mkdir(parents=True)
        handle = os.open(kept.folder / _LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(kept.folder / _LOCK)
        except BlockingIOError:
            os.close(handle)
            raise ResiDualError(
                f"another fit is writing to '{kept.target}' (it holds '{kept.folder}'); wait for "
                "it, or name another output."
            ) from None
        except FileNotFoundError:  # the other one has just succeeded
            os.close(handle)
            continue
        if os.path.samestat(here, os.fstat(handle)):
            return handle
        os.close(handle)


def _json_in(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@dataclass
class Pass:
    """The images of a fit and what was read of them so far."""

    images: ImageData  # those that could be read
    task: Task  # what they are for, and how to read them
    kept: Keeping  # where it is kept
    total: int  # images there were, unreadable ones included
    device: torch.device | str = "cpu"  # where the model reads

    def begin(self, model: PeftModel) -> None:
        """Say what the images are read with, and see to it that there is room for it.

        Raises:
            ResiDualError: there is too little room.
        """
        self.device = device_of(self.task.recipe.device or next(model.parameters()).device)
        known = {
            "images": {split: data_digest(self.processed(split)) for split in self.images.splits},
            "split": self.images.split.digest,
            "class names": list(self.images.class_names),
            "image processor": processor_digest(self.task.backbone.image_processor),
            "model": digest_of_json(Fingerprint.of(model).to_dict()),
            "adapter": None
            if readout_config(model).needs_basis
            else adapter_digest(readout_state(model)),
            "batch size": self.task.recipe.batch_size,
        }
        if self.kept.begin({**self.task.settings, **known}):
            logger.info("going on where an interrupted fit stopped ('%s')", self.kept.folder.name)
            return
        sizes = {split: len(rows) for split, rows in self.images.splits.items()}
        needed = room_for(model, sizes) + LEAST_ROOM
        check_room(self.kept.folder, needed, f"what is read for '{self.kept.target.name}'")

    def read(self, model: PeftModel, split: str, fit_basis: bool = False) -> CoordinateStore:
        """The coordinates of a split; what could not be read is no longer among its images.

        Raises:
            ResiDualError: as `write_coordinates`; too many images cannot be read.
        """
        dataset = self.processed(split)
        model.to(self.device)
        store = write_coordinates(
            model,
            dataset,
            self.kept.folder / split,
            fit_basis=fit_basis,
            shard_size=shard_size(len(dataset), self.task.recipe.batch_size),
            progress=True,
            **self.task.recipe.reading,
        )
        model.to("cpu")  # where all is fitted
        self.drop(split, store.skipped)
        return store

    def groups(self, splits: Iterable[str]) -> Tensor | None:
        """What each image of some splits is left out with, (N,)."""
        found = self.images.groups
        own = [group for split in splits for group in found.get(split, ())]
        number = {group: place for place, group in enumerate(dict.fromkeys(own))}
        return torch.tensor([number[group] for group in own]) if own else None

    def processed(self, split: str) -> ProcessedImages:
        """A split as the model takes it."""
        processor = self.task.backbone.image_processor
        return ProcessedImages(self.images[split], processor, TITLES[split])

    def drop(self, split: str, missed: Sequence[tuple[int, str, str]]) -> None:
        """Leave out images that turned out to be unreadable: row, file and reason of each.

        Raises:
            ResiDualError: `strict`, or more of them than may be.
        """
        if not missed:
            return
        skipped = [SkippedImage(file, reason) for _, file, reason in missed]
        self.images = self.images.without(split, [row for row, _, _ in missed], skipped)
        self.task.recipe.check_skipped(self.images, self.total)


def shard_size(images: int, batch_size: int) -> int:
    """Images per file: what a killed run loses at most, a few batches where there are few images.

    >>> shard_size(1400, 64), shard_size(1_000_000, 64)
    (128, 3968)
    """
    batches = max(2, -(-images // (_SHARDS * batch_size)))
    return batches * batch_size


def room_for(model: nn.Module, images: Mapping[str, int]) -> int:
    """Bytes of disk that the pass needs at most: of training images, also what the units wrote."""
    tower, state = find_tower(model), readout_state(model)
    size = next(model.parameters()).element_size()
    held = len(state.directions)
    raw = (2 * len(tower.layers) + 3) * tower.width * size + tower.readout_width * 4
    each = coordinate_bytes(1, held, tower.readout_width)
    train = images.get("train", 0)
    return train * max(raw, each) + (sum(images.values()) - train) * each


def digest_of_json(value: Any) -> str:
    """The sha256 of a JSON-able value, sets in it as sorted lists."""
    sets = (set, frozenset)
    text = json.dumps(
        value,
        sort_keys=True,
        default=lambda x: sorted(map(str, x)) if isinstance(x, sets) else str(x),
    )
    return hashlib.sha256(text.encode()).hexdigest()
