"""What a registry takes, before any of it is run."""

from dataclasses import dataclass
from pathlib import Path

from peft import get_peft_model

from ...classifiers.backbones import load_backbone
from ...errors import counted, printable
from ...hub.directories import DEMO_MODEL
from ...solvers.store import coordinate_bytes
from ...solvers.store.layout import DTYPES
from ...tuner import ResiDualConfig, readout_state
from .descent import EPOCHS, HELD_OUT_SHARE, RATES, passes
from .entries import DataEntry, ModelEntry, Protocol
from .images import load_images
from .methods import METHODS
from .registry import Registry
from .run import Run, runs_of

UNKNOWN = "?"
BACKWARD = 3
"""A pass forward and back takes three times a pass forward, in floating-point operations."""


@dataclass(frozen=True)
class Planned:
    """A model and a data set.

    Attributes:
        model: its name.
        data: its name.
        images: that are read, training and test; None where it is not known before.
        bytes: of their coordinates, which lie on disk while they are needed; likewise.
        runs: how many fits.
        backwards: images that runs through the backbone read forward and back, choices included, at
            most, since they may stop early; None where it is not known before.
        again: images that such runs read forward alone, to choose and to test; likewise.
    """

    model: str
    data: str
    images: int | None
    bytes: int | None
    runs: int
    backwards: int | None = 0
    again: int | None = 0


def plan(registry: Registry) -> list[Planned]:
    """Every pair; what lies here is counted, all else is taken from the registry.

    Nothing is downloaded.

    Raises:
        ResiDualError: a model or data set that lies here cannot be read.
    """
    sizes = {name: _size(entry) for name, entry in registry.models.items()}
    images = {name: _images(registry.data[name]) for name in registry.tasks}
    runs: dict[tuple[str, str], list[Run]] = {}
    for run in runs_of(registry):
        runs.setdefault(run[:2], []).append(run)
    asked = [found.test if found else None for found in images.values()]
    found = []
    for (model, data), own in runs.items():
        there, size, total = images[data], sizes[model], None
        count = None if there is None else there.whole
        if count is not None and size is not None:
            total = coordinate_bytes(count, *size, DTYPES[registry.dtype])
        through = [
            _passes(registry.protocols[name], there, asked)
            for _, _, name, _, method in own
            if METHODS[method].backwards
        ]
        both = (_sum([one[place] for one in through]) for place in range(2))
        found.append(Planned(model, data, count, total, len(own), *both))
    return found


def lines(planned: list[Planned]) -> list[str]:
    """A plan for people."""
    head = f"{'model':16} {'data set':20} {'images':>10} {'coordinates':>12} {'runs':>6}"
    found = [head]
    for each in planned:
        count = UNKNOWN if each.images is None else f"{each.images:,}"
        size = UNKNOWN if each.bytes is None else f"{each.bytes / 1e9:.2f} GB"
        names = f"{printable(each.model):16} {printable(each.data):20}"
        found.append(f"{names} {count:>10} {size:>12} {each.runs:>6,}")
    images, sizes = sum(each.images or 0 for each in planned), [each.bytes or 0 for each in planned]
    unknown = sum(each.bytes is None for each in planned)
    most = f"; the largest pair takes {max(sizes) / 1e9:.2f} GB of disk, and of memory"
    left = f" ({counted(unknown, 'pair')} not known before)" if unknown else ""
    runs = counted(sum(each.runs for each in planned), "run")
    found.append(f"{counted(images, 'image')} to read, {runs}{most}{left}.")
    return [*found, *_through_backbones(planned)]


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


def _size(entry: ModelEntry) -> tuple[int, int] | None:
    """K and d of a model."""
    if entry.source == DEMO_MODEL or Path(entry.source).is_dir():
        backbone = load_backbone(entry.source)
        state = readout_state(get_peft_model(backbone.model, ResiDualConfig()))
        return len(state.shift), state.constant.shape[-1]
    if entry.coordinates is None or entry.width is None:
        return None
    return entry.coordinates, entry.width


@dataclass(frozen=True)
class _Images:
    """How many there are of a data set; its classes where they are known."""

    train: int
    test: int
    classes: int | None

    @property
    def whole(self) -> int:
        return self.train + self.test


def _images(entry: DataEntry) -> _Images | None:
    """Images that are trained and tested on."""
    if entry.images is not None:
        classes = None if entry.class_names is None else len(entry.class_names)
        return _Images(entry.images.get("train", 0), entry.images.get("test", 0), classes)
    if not Path(entry.source).exists():
        return None
    found = load_images(entry)
    return _Images(len(found.train), len(found.test), len(found.class_names))


def _passes(
    protocol: Protocol, images: _Images | None, asked: list[int | None]
) -> tuple[int | None, int | None]:
    """Images that one run through the backbone reads forward and back, and forward alone.

    Args:
        protocol: what it is of.
        images: of the data set.
        asked: test images of every data set, since such a run tells what is forgotten.
    """
    train = None if images is None else _drawn(protocol, images)
    if train is None:
        return None, None
    held = round(train * HELD_OUT_SHARE)
    return passes(train), _sum([RATES * (EPOCHS + 1) * held, *asked])


def _drawn(protocol: Protocol, images: _Images) -> int | None:
    """Training images of one draw; None where classes are to be counted and are not known."""
    halves = protocol.kind == "base-to-novel"
    if protocol.shots is None:
        return -(-images.train // 2) if halves else images.train
    if images.classes is None:
        return None
    classes = -(-images.classes // 2) if halves else images.classes
    return min(images.train, protocol.shots * classes)


def _sum(values: list[int | None]) -> int | None:
    """None where one is not known."""
    return None if None in values else sum(value or 0 for value in values)
