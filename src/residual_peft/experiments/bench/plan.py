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
from .entries import DataEntry, ModelEntry
from .images import load_images
from .registry import Registry
from .run import runs_of

UNKNOWN = "?"


@dataclass(frozen=True)
class Planned:
    """A model and a data set.

    Attributes:
        model: its name.
        data: its name.
        images: that are read, training and test; None where it is not known before.
        bytes: of their coordinates, which lie on disk while they are needed; likewise.
        runs: how many fits.
    """

    model: str
    data: str
    images: int | None
    bytes: int | None
    runs: int


def plan(registry: Registry) -> list[Planned]:
    """Every pair; what lies here is counted, all else is taken from the registry.

    Nothing is downloaded.

    Raises:
        ResiDualError: a model or data set that lies here cannot be read.
    """
    sizes = {name: _size(entry) for name, entry in registry.models.items()}
    images = {name: _images(registry.data[name]) for name in registry.tasks}
    counts: dict[tuple[str, str], int] = {}
    for model, data, *_ in runs_of(registry):
        counts[model, data] = counts.get((model, data), 0) + 1
    found = []
    for (model, data), runs in counts.items():
        count, size = images[data], sizes[model]
        total = None
        if count is not None and size is not None:
            total = coordinate_bytes(count, *size, DTYPES[registry.dtype])
        found.append(Planned(model, data, count, total, runs))
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
    return found


def _size(entry: ModelEntry) -> tuple[int, int] | None:
    """K and d of a model."""
    if entry.source == DEMO_MODEL or Path(entry.source).is_dir():
        backbone = load_backbone(entry.source)
        state = readout_state(get_peft_model(backbone.model, ResiDualConfig()))
        return len(state.shift), state.constant.shape[-1]
    if entry.coordinates is None or entry.width is None:
        return None
    return entry.coordinates, entry.width


def _images(entry: DataEntry) -> int | None:
    """Images that are trained and tested on."""
    if entry.images is not None:
        return sum(entry.images.get(split, 0) for split in ("train", "test"))
    if not Path(entry.source).exists():
        return None
    found = load_images(entry)
    return len(found.train) + len(found.test)
