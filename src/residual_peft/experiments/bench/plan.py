"""What a registry takes, before any of it is run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor

from ...classifiers.backbones import load_backbone
from ...errors import counted, printable
from ...hub.directories import model_here
from ...solvers.store import coordinate_bytes
from ...solvers.store.layout import DTYPES
from ...tuner import ResiDualConfig, readout_state
from .backbones import BACKBONES
from .descent import EPOCHS, HELD_OUT_SHARE, RATES, passes
from .entries import DataEntry, ModelEntry, Protocol
from .images import drawn_at_most, load_images, load_shifted, most_needed, needed
from .machine import reading_rate
from .registry import OWN, WEIGHTS, Registry
from .run import Run, runs_of

UNKNOWN = "?"
BACKWARD = 3
"""A pass forward and back takes three times a pass forward, in floating-point operations."""


@dataclass(frozen=True)
class Planned:
    """A model and a data set."""

    model: str  # its name
    data: str  # its name
    # that are read, once for each kind of bases: training images as far as they are drawn (at most
    # so many), test images, and shifted and corrupted ones; None where it is not known before
    images: int | None
    bytes: int | None  # of their coordinates, which lie on disk while they are needed; likewise
    runs: int  # how many fits; none where images are read to fit bases alone
    # images that runs through the backbone read forward and back, choices included, at most, since
    # they may stop early; None where it is not known before
    backwards: int | None = 0
    # images that such runs read forward alone, to choose and to test; likewise
    again: int | None = 0
    rate: float | None = None  # images a second that the model reads; None where nobody says
    measured: bool = False  # whether that was measured here

    @property
    def hours(self) -> float | None:
        """Of reading all these images, forward and back as often as that is; None if unknown."""
        counts = (self.images, self.backwards, self.again)
        if self.rate is None or None in counts:
            return None
        images, backwards, again = (count or 0 for count in counts)
        return (images + BACKWARD * backwards + again) / self.rate / 3600


def plan(registry: Registry, images_per_second: float | None = None) -> list[Planned]:
    """Every pair; what lies here is counted and measured, all else is taken from the registry.

    Nothing is downloaded. The rate is for models whose weights are not here, if somebody knows it.

    Raises:
        ResiDualError: a model or data set that lies here cannot be read.
    """
    models = {
        name: _model(entry, registry.batch_size, images_per_second)
        for name, entry in registry.models.items()
    }
    of_bases = tuple(name for name in registry.bases if name in registry.data)
    names = dict.fromkeys((*registry.tasks, *of_bases))
    images = {name: _images(registry.data[name]) for name in names}
    runs: dict[tuple[str, str], list[Run]] = {}
    for run in runs_of(registry):
        runs.setdefault(run[:2], []).append(run)
    asked = [task.test if (task := images[name]) else None for name in registry.tasks]
    shifted = {name: _shifted(registry, name) for name in registry.tasks}
    found = []
    for (model, data), own in runs.items():
        read = [_read(part, images[data], shifted[data]) for part in registry.by_basis()]
        through = [
            _passes(registry, registry.protocols[name], images[data], asked, shifted[data])
            for _, _, name, _, method in own
            if method in BACKBONES
        ]
        backwards, again = (_sum([one[place] for one in through]) for place in range(2))
        (size, rate, measured), total = models[model], None
        if size is not None and None not in read:
            most = max(count or 0 for count in read)
            total = coordinate_bytes(most, *size, DTYPES[registry.dtype])
        counts = (_sum(read), total, len(own), backwards, again)
        found.append(Planned(model, data, *counts, rate, measured))
    for model, (_, rate, measured) in models.items():  # what is read once to fit bases
        for data in of_bases:
            train = basis.train if (basis := images[data]) else None
            what = f"bases of {data}"
            found.append(Planned(model, what, train, 0, 0, rate=rate, measured=measured))
    return found


def lines(planned: list[Planned]) -> list[str]:
    """A plan for people."""
    head = f"{'model':16} {'data set':20} {'images':>10} {'coordinates':>12}"
    found = [f"{head} {'hours':>8} {'runs':>6}"]
    for each in planned:
        count = UNKNOWN if each.images is None else f"{each.images:,}"
        size = UNKNOWN if each.bytes is None else f"{each.bytes / 1e9:.2f} GB"
        hours = UNKNOWN if each.hours is None else f"{each.hours:.2f}"
        names = f"{printable(each.model):16} {printable(each.data):20}"
        found.append(f"{names} {count:>10} {size:>12} {hours:>8} {each.runs:>6,}")
    images, sizes = sum(each.images or 0 for each in planned), [each.bytes or 0 for each in planned]
    unknown = sum(each.bytes is None for each in planned)
    most = f"; the largest pair takes {max(sizes) / 1e9:.2f} GB of disk, and of memory"
    left = f" ({counted(unknown, 'pair')} not known before)" if unknown else ""
    runs = counted(sum(each.runs for each in planned), "run")
    found.append(f"{counted(images, 'image')} to read, {runs}{most}{left}.")
    return [*found, *_through_backbones(planned), _hours(planned)]


def _hours(planned: list[Planned]) -> str:
    """How long reading takes, and who says so."""
    known = [each.hours for each in planned if each.hours is not None]
    here = {each.model: each.rate for each in planned if each.measured}
    stated = {each.model for each in planned if each.rate and not each.measured}
    strange = {each.model for each in planned if each.rate is None}
    if strange == {each.model for each in planned}:
        return (
            "How many hours that takes is not known: the weights of "
            f"{counted(len(strange), 'model')} are not here. Say --images-per-second."
        )
    said = [f"{printable(name)}: {rate:.1f} images a second here" for name, rate in here.items()]
    said += [f"{counted(len(stated), 'model')} as stated"] if stated else []
    left = len(planned) - len(known)
    unknown = f", {counted(left, 'line')} with '{UNKNOWN}' left out" if left else ""
    return (
        f"{sum(known):.2f} hours of reading{unknown} ({'; '.join(said)}); downloads, decoding and "
        "fits come on top."
    )


def _through_backbones(planned: list[Planned]) -> list[str]:
    """What goes back through backbones, where anything does."""
    told = [each for each in planned if each.backwards and each.again is not None]
    unknown = sum(each.backwards is None or each.again is None for each in planned)
    if not told and not unknown:
        return []
    backwards = sum(each.backwards or 0 for each in told)
    again = sum(each.again or 0 for each in told)
    left = f"; {counted(unknown, 'pair')} not known before" if unknown else ""
    return [
        f"Methods that train the backbone read {backwards:,} images forward and back at most, and "
        f"{again:,} forward: as much as reading {BACKWARD * backwards + again:,} once{left}."
    ]


def _model(
    entry: ModelEntry, batch_size: int, stated: float | None
) -> tuple[tuple[int, int] | None, float | None, bool]:
    """K and d of a model, images a second, and whether these were measured."""
    if (place := model_here(entry.source, entry.revision)) is not None:
        backbone = load_backbone(place)
        model = get_peft_model(backbone.model, ResiDualConfig())
        state = readout_state(model)
        size = len(state.shift), state.constant.shape[-1]
        return size, reading_rate(backbone, model, batch_size), True
    if entry.coordinates is None or entry.width is None:
        return None, stated, False
    return (entry.coordinates, entry.width), stated, False


@dataclass(frozen=True)
class _Images:
    """How many there are of a data set; its classes and labels where they are known."""

    train: int
    test: int
    classes: int | None
    labels: Tensor | None = None


def _images(entry: DataEntry) -> _Images | None:
    """Images that are trained and tested on."""
    if entry.images is not None:
        classes = entry.classes or (None if entry.class_names is None else len(entry.class_names))
        return _Images(entry.images.get("train", 0), entry.images.get("test", 0), classes)
    if not Path(entry.source).exists():
        return None
    found = load_images(entry)
    labels = torch.tensor(found.train["label"])
    return _Images(len(found.train), len(found.test), len(found.class_names), labels)


def _read(part: Registry, images: _Images | None, shifted: int | None) -> int | None:
    """Images of a data set, and `shifted` ones, that are read in the protocols of one basis."""
    protocols = part.protocols.values()
    if images is None:
        return None
    if part.basis == OWN:
        train: int | None = images.train
    elif images.labels is not None and images.classes is not None:
        train = len(needed(protocols, images.labels, images.classes))
    else:
        train = most_needed(protocols, images.train, images.classes)
    worse = {(name, level) for p in protocols for name in p.corruptions for level in p.severities}
    asked = any(map(_asks_beside, protocols))
    return _sum([train, images.test * (1 + len(worse)), shifted if asked else 0])


def _asks_beside(protocol: Protocol) -> bool:
    """Whether it asks for shifted images."""
    return protocol.kind != "base-to-novel"


def _shifted(registry: Registry, data: str) -> int | None:
    """Test images of other data sets that a task is asked for, too, without those it trains on."""
    if not any(map(_asks_beside, registry.protocols.values())):
        return 0
    own = registry.data[data]
    counts: list[int | None] = []
    for entry in (registry.data[name] for name in own.shifted):
        if entry.images is not None:
            counts.append(entry.images.get("test", 0))
        elif Path(entry.source).exists() and Path(own.source).exists():
            counts.append(len(load_shifted(entry, load_images(own))))
        else:
            counts.append(None)
    return _sum(counts)


def _passes(
    registry: Registry,
    protocol: Protocol,
    images: _Images | None,
    tests: list[int | None],
    shifted: int | None,
) -> tuple[int | None, int | None]:
    """Images that one run through the backbone reads forward and back, and forward alone.

    Such a run tells what is forgotten, on the test images of every data set: `tests`. It changes
    what is seen of corrupted and of `shifted` images, too; and stream mode fits bases anew.
    """
    if images is None or (drawn := drawn_at_most(protocol, images.train, images.classes)) is None:
        return None, None
    train, validation = drawn
    held = validation or round(train * HELD_OUT_SHARE)
    forward = [RATES * (EPOCHS + 1) * held, *tests]
    forward.append(images.test * len(protocol.corruptions) * len(protocol.severities))
    forward.append(shifted if _asks_beside(protocol) else 0)
    forward.append(0 if (protocol.basis or registry.basis) == WEIGHTS else train)
    return passes(train, validation), _sum(forward)


def _sum(values: list[int | None]) -> int | None:
    """None where one is not known."""
    return None if None in values else sum(value or 0 for value in values)
