"""A model and a data set of a registry -> coordinates on disk, each image read once."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from peft import PeftModel, get_peft_model

from ...bases.basis import SpectralBasis
from ...bases.fingerprint import Fingerprint
from ...classifiers.backbones import Backbone, load_backbone
from ...classifiers.class_means import class_means_of
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, ProcessedImages, batches, load_data
from ...data.labels import ONE_LABEL, check_same
from ...hub.files import read_json, write_json
from ...solvers.coordinates import Coordinates
from ...solvers.methods import Rows
from ...solvers.store import CoordinateStore, write_coordinates
from ...tuner import ResiDualConfig
from .registry import OWN, WEIGHTS, DataEntry, ModelEntry, Registry

SECONDS = "seconds.json"
SHARD = 1024  # images per file: what a killed run reads again at most


def load_images(entry: DataEntry) -> ImageData:
    """The images of an entry, with a split to train and one to test on.

    As in `fit`, test images that are training or validation images, too, are left out.

    Raises:
        ResiDualError: as `load_data`; several labels per image; no test image is left.
    """
    shares: dict[str, Any] = {"validation": entry.validation, "test": entry.test}
    found = load_data(
        entry.source,
        config=entry.config,
        revision=entry.revision,
        image_column=entry.image_column,
        label_column=entry.label_column,
        class_names=entry.class_names,
        splits=entry.splits,
        seed=entry.seed,
        **(dict.fromkeys(shares, 0.0) if entry.resplit else shares),
    )
    check_same(ONE_LABEL, found.labelling, "a bench tells one class from the others")
    if entry.resplit:
        images, digests = found.whole()
        whole = replace(found, splits=DatasetDict(train=images), digests={"train": digests})
        found = whole.cut(shares, entry.seed)
    return found.without_repeated()[0]


def split_digest(images: ImageData) -> str:
    """Of which images are trained and tested on, whatever they are called."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(f"{split} {' '.join(sorted(images.digests[split]))}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Tower:
    """A model of a registry with its adapter, whose bases its data sets share or not.

    Attributes:
        backbone: as it was loaded.
        model: with the adapter in.
        own_basis: whether each data set's training images give its bases.
        folder: where its coordinates lie meanwhile.
    """

    backbone: Backbone
    model: PeftModel
    own_basis: bool
    folder: Path

    @classmethod
    def of(
        cls, entry: ModelEntry, registry: Registry, folder: Path, basis: ImageData | None
    ) -> "Tower":
        """Load a model, and fit its bases once where they are of one data set.

        Args:
            entry: which model.
            registry: what it is of.
            folder: for its coordinates, of the name that the model has there.
            basis: that data set.

        Raises:
            ResiDualError: no such model, or none with a known tower.
        """
        backbone = load_backbone(entry.source, revision=entry.revision)
        config = ResiDualConfig()
        if registry.basis not in (WEIGHTS, OWN):
            assert basis is not None
            place = folder / f"basis-{registry.digest(folder.name, registry.basis)}"
            if not place.is_dir():
                images = batches(
                    basis.train, backbone.image_processor, batch_size=registry.batch_size
                )
                with on_accelerator(backbone.model):
                    found = SpectralBasis.fit(backbone.model, images, config.units, progress=True)
                found.save_pretrained(place)
            config = ResiDualConfig(basis=str(place))
        model = get_peft_model(backbone.model, config)
        return cls(backbone, model, registry.basis == OWN, folder)

    @cached_property
    def weights(self) -> str:
        """A digest of the model's weights."""
        return Fingerprint.of(self.model).to_dict()["digests"]["float32"][:16]

    @property
    def has_text(self) -> bool:
        """Whether class names are texts to it."""
        return self.backbone.tokenizer is not None


@dataclass(frozen=True)
class Pair:
    """A model and a data set.

    Attributes:
        tower: the model.
        images: the data set.
        entry: of the data set.
        registry: how to read.
        folder: where its coordinates lie meanwhile.
        stores: split -> its coordinates, as far as they were read.
    """

    tower: Tower
    images: ImageData
    entry: DataEntry
    registry: Registry
    folder: Path
    stores: dict[str, CoordinateStore] = field(default_factory=dict)

    @cached_property
    def train(self) -> Coordinates:
        """Of the training images, in memory."""
        return self.store("train").load()

    @cached_property
    def test(self) -> Coordinates:
        """Of the test images, in memory."""
        return self.store("test").load()

    @cached_property
    def texts(self) -> ZeroShotClassifier:
        """The classes as texts; of a model with a text tower."""
        return ZeroShotClassifier.from_text(
            self.tower.model,
            self.tower.backbone.tokenizer,
            self.images.class_names,
            self.entry.templates,
        )

    @property
    def seconds(self) -> float:
        """That its images took to read, in all runs that read some."""
        path = self.folder / SECONDS
        return float(read_json(path)) if path.exists() else 0.0

    def classifier(self, drawn: Coordinates) -> ZeroShotClassifier:
        """The classes as texts, or as means of training images where there are no texts."""
        if self.tower.has_text:
            return self.texts
        names = self.images.class_names
        means = class_means_of(drawn.readout, drawn.labels, names)
        return ZeroShotClassifier(self.tower.model, names, means)

    def rows(self, classifier: ZeroShotClassifier, drawn: Coordinates) -> Rows:
        """Training images as methods take them."""
        return Rows.of(classifier, drawn, means=not self.tower.has_text)

    def forget(self) -> None:
        """Let go of what is in memory, and of the training images' coordinates on disk."""
        for split in ("train", "test"):
            self.__dict__.pop(split, None)
        self.stores.pop("train", None)
        shutil.rmtree(self.folder / "train", ignore_errors=True)

    def store(self, split: str) -> CoordinateStore:
        """The coordinates of a split on disk, each image read once."""
        if split in self.stores:
            return self.stores[split]
        if self.tower.own_basis and split == "test":
            self.store("train")  # whose pass gives the bases
        started, before = time.perf_counter(), self.seconds
        processor = self.tower.backbone.image_processor
        try:
            with on_accelerator(self.tower.model):
                self.stores[split] = write_coordinates(
                    self.tower.model,
                    ProcessedImages(self.images[split], processor, f"the {split} split"),
                    self.folder / split,
                    fit_basis=self.tower.own_basis and split == "train",
                    dtype=self.registry.dtype,
                    batch_size=self.registry.batch_size,
                    shard_size=SHARD,
                    progress=True,
                )
        finally:
            write_json(self.folder / SECONDS, before + time.perf_counter() - started)
        return self.stores[split]


@contextmanager
def on_accelerator(model: torch.nn.Module) -> Iterator[None]:
    """The model on this process's accelerator, where there is one, for as long as it reads."""
    if not torch.cuda.is_available():
        yield
        return
    model.to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
    try:
        yield
    finally:
        model.to("cpu")
