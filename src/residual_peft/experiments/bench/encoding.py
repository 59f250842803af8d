"""A model and a data set of a registry -> coordinates on disk, each image read once."""

import hashlib
import shutil
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor

from ...bases.basis import SpectralBasis
from ...bases.fingerprint import Fingerprint
from ...classifiers.backbones import Backbone, load_backbone
from ...classifiers.class_means import class_means_of
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, ProcessedImages, batches
from ...hub.files import read_json, write_json
from ...solvers.coordinates import Coordinates
from ...solvers.store import CoordinateStore, write_coordinates
from ...tuner import ResiDualConfig
from .corruptions import CorruptingProcessor
from .entries import DataEntry, ModelEntry, Protocol
from .images import needed, subgroups_of
from .machine import on_accelerator
from .pixels import Images, Pixels, Room
from .registry import OWN, Registry

SECONDS = "seconds.json"
DRAWN = "drawn"
SHARD = 1024  # images per file: what a killed run reads again at most


@dataclass(frozen=True)
class Tower:
    """A model of a registry with its adapter, whose bases its data sets share or not."""

    backbone: Backbone  # as it was loaded
    model: PeftModel  # with the adapter in
    folder: Path  # where its coordinates lie meanwhile
    room: Room = field(default_factory=Room)  # for images in memory

    @classmethod
    def of(
        cls, entry: ModelEntry, registry: Registry, folder: Path, basis: ImageData | None
    ) -> "Tower":
        """Load a model, and fit its bases once where they are of one data set, `basis`.

        Coordinates go to `folder`, of the name that the model has in the registry.

        Raises:
            ResiDualError: no such model, or none with a known tower.
        """
        backbone = load_backbone(entry.source, revision=entry.revision)
        config = ResiDualConfig()
        if basis is not None:
            place = folder / f"basis-{registry.digest(folder.name, registry.basis)}"
            if not place.is_dir():
                images = batches(
                    basis.train, backbone.image_processor, batch_size=registry.batch_size
                )
                with on_accelerator(backbone.model):
                    found = SpectralBasis.fit(backbone.model, images, config.units, progress=True)
                found.save_pretrained(place)
            config = ResiDualConfig(basis=str(place))
        return cls(backbone, get_peft_model(backbone.model, config), folder)

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
    """A model and a data set."""

    tower: Tower  # the model
    images: ImageData  # the data set
    entry: DataEntry  # of the data set
    registry: Registry  # how to read
    folder: Path  # where its coordinates lie meanwhile
    # name of another data set -> its test images, with the classes of this one
    shifted: dict[str, Dataset] = field(default_factory=dict)
    # split -> its coordinates, as far as they were read
    stores: dict[str, CoordinateStore] = field(default_factory=dict)
    # likewise its images, of which a method may want more than coordinates
    pictures: dict[str, Pixels] = field(default_factory=dict)

    @cached_property
    def needed(self) -> Tensor:
        """Training images that any protocol draws, or that give the bases: numbers, increasing."""
        labels = torch.tensor(self.images.train["label"])
        if self.registry.basis == OWN:
            return torch.arange(len(labels))
        return needed(self.registry.protocols.values(), labels, len(self.images.class_names))

    @cached_property
    def train(self) -> Coordinates:
        """Of the training images that are needed, in memory."""
        if len(self.needed) == len(self.images.train):
            return self.store("train").load()
        # other protocols draw others: theirs, of a run that was killed, lie elsewhere
        digest = hashlib.sha256(self.needed.numpy().tobytes()).hexdigest()[:16]
        return self.store(f"{DRAWN}/{digest}").load()

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

    @cached_property
    def subgroups(self) -> tuple[str, ...]:
        """Class and group of each test image, as one text; none where the entry names no groups."""
        if self.entry.subgroups is None:
            return ()
        names = [self.images.class_names[label] for label in self.images.test["label"]]
        values = subgroups_of(self.entry, self.images)
        return tuple(f"{name}, {value}" for name, value in zip(names, values, strict=True))

    @property
    def seconds(self) -> float:
        """That its images took to read, in all runs that read some; without shifted ones."""
        path = self.folder / SECONDS
        return float(read_json(path)) if path.exists() else 0.0

    def classifier(self, drawn: Coordinates) -> ZeroShotClassifier:
        """The classes as texts, or as means of training images where there are no texts."""
        if self.tower.has_text:
            return self.texts
        names = self.images.class_names
        means = class_means_of(drawn.readout, drawn.labels, names)
        return ZeroShotClassifier(self.tower.model, names, means)

    def forget(self) -> None:
        """Let go of what is in memory, and of all coordinates on disk but the test images'."""
        for split in ("train", "test"):
            self.__dict__.pop(split, None)
        for pixels in self.pictures.values():
            pixels.forget()
        for name in [name for name in self.stores if name != "test"]:
            del self.stores[name]
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def images_of(self, name: str, rows: Tensor | None = None) -> Images:
        """Images as the model takes them, all without rows; names as in `processed`."""
        if name not in self.pictures:
            self.pictures[name] = Pixels(self.processed(name), self.tower.room)
        pixels = self.pictures[name]
        return Images(pixels, torch.arange(len(pixels.dataset)) if rows is None else rows)

    def beside(self, protocol: Protocol) -> dict[str, str]:
        """What to call test images of other kinds that a protocol asks for -> their store."""
        found = {
            f"{name} {severity}": f"corrupted/{name}/{severity}"
            for name in protocol.corruptions
            for severity in protocol.severities
        }
        return found | {name: f"shifted/{name}" for name in self.shifted}

    def processed(self, name: str) -> ProcessedImages:
        """The images of a store as the model takes them.

        Its name is a split; "drawn/" and anything, for the training images that are needed;
        "corrupted/", a corruption, "/" and a severity, for the test images made worse; or
        "shifted/" and the name of another data set.
        """
        processor = self.tower.backbone.image_processor
        kind, *rest = name.split("/")
        if kind == "corrupted":
            processor = CorruptingProcessor(processor, rest[0], int(rest[1]))
        of = {"corrupted": "test", DRAWN: "train"}.get(kind, kind)
        images = self.shifted[rest[0]] if kind == "shifted" else self.images[of]
        images = images.select(self.needed.tolist()) if kind == DRAWN else images
        return ProcessedImages(images, processor, f"the images '{name}'")

    def store(self, name: str) -> CoordinateStore:
        """The coordinates of images on disk, each image read once; names as in `processed`."""
        if name in self.stores:
            return self.stores[name]
        if self.registry.basis == OWN and name != "train":
            self.store("train")  # whose pass gives the bases
        started, before = time.perf_counter(), self.seconds
        try:
            with on_accelerator(self.tower.model):
                self.stores[name] = write_coordinates(
                    self.tower.model,
                    self.processed(name),
                    self.folder / name,
                    fit_basis=self.registry.basis == OWN and name == "train",
                    dtype=self.registry.dtype,
                    batch_size=self.registry.batch_size,
                    shard_size=SHARD,
                    progress=True,
                )
        finally:
            if name.partition("/")[0] in ("train", "test", DRAWN):
                write_json(self.folder / SECONDS, before + time.perf_counter() - started)
        return self.stores[name]
