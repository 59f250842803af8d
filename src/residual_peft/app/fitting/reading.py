"""The images of a fit, each read once and kept on disk; those that cannot be read drop out."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...classifiers.backbones import device_of
from ...data import ImageData, ProcessedImages, SkippedImage
from ...hub.places import LEAST_ROOM, check_room
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
from .keeping import Keeping
from .recipe import Recipe

logger = logging.getLogger(__name__)

TITLES = {
    "train": "the training split",
    "validation": "the validation split",
    "test": "the test split",
}
_SHARDS = 256  # at most so many of a split, and each of at least two batches


@dataclass
class Pass:
    """The images of a fit and what was read of them so far."""

    images: ImageData  # those that could be read
    processor: Any  # of the images
    kept: Keeping  # where it is kept
    recipe: Recipe  # how to read
    total: int  # images there were, unreadable ones included
    stores: dict[str, CoordinateStore] = field(default_factory=dict)  # split -> its coordinates
    device: torch.device | str = "cpu"  # where the model reads

    def begin(self, model: PeftModel, settings: Mapping[str, Any]) -> None:
        """Say what the images are read with, and see to it that there is room for it.

        Raises:
            ResiDualError: there is too little room.
        """
        self.device = device_of(self.recipe.device or next(model.parameters()).device)
        known = {
            "images": {split: data_digest(self.processed(split)) for split in self.images.splits},
            "split": self.images.split.digest,
            "class names": list(self.images.class_names),
            "image processor": processor_digest(self.processor),
            "model": digest_of_json(Fingerprint.of(model).to_dict()),
            "adapter": None
            if readout_config(model).needs_basis
            else adapter_digest(readout_state(model)),
            "batch size": self.recipe.batch_size,
        }
        if self.kept.begin({**settings, **known}):
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
            shard_size=shard_size(len(dataset), self.recipe.batch_size),
            progress=True,
            **self.recipe.reading,
        )
        model.to("cpu")  # where all is fitted
        self.drop(split, store.skipped)
        self.stores[split] = store
        return store

    def groups(self, splits: Iterable[str]) -> Tensor | None:
        """What each image of some splits is left out with, (N,)."""
        found = self.images.groups
        own = [group for split in splits for group in found.get(split, ())]
        number = {group: place for place, group in enumerate(dict.fromkeys(own))}
        return torch.tensor([number[group] for group in own]) if own else None

    def processed(self, split: str) -> ProcessedImages:
        """A split as the model takes it."""
        return ProcessedImages(self.images[split], self.processor, TITLES[split])

    def drop(self, split: str, missed: Iterable[tuple[int, str, str]]) -> None:
        """Leave out images that turned out to be unreadable: row, file and reason of each.

        Raises:
            ResiDualError: `strict`, or more of them than may be.
        """
        found = list(missed)
        if not found:
            return
        skipped = [SkippedImage(file, reason) for _, file, reason in found]
        self.images = self.images.without(split, [row for row, _, _ in found], skipped)
        self.recipe.check_skipped(self.images, self.total)


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

    def plain(one: Any) -> Any:
        return sorted(map(str, one)) if isinstance(one, set | frozenset) else str(one)

    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def readouts_of(store: CoordinateStore) -> Tensor:
    """y (N, d) of the unadapted model."""
    return torch.cat([part.readout for part in store.parts])
