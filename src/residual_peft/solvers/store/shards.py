"""A pass over the images, cut where the shards are; raw shards, kept until the bases are known."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...bases.reading import Captures, ReadBatch, capture_from
from ...bases.rows import Rows
from ...data import Batches
from ...hub.files import read_tensors, write_tensors
from ...towers.anatomy import TowerAnatomy
from ...towers.captures import Capture
from .layout import SKIPPED

FIELDS = ("heads", "mlps", "embed", "stream", "pooled", "pooler", "constant")
"""Of a capture: all that the contribution of any unit is made of."""
_UNITS, _PLACES = "units.", "places"


class Stream:
    """What a pass sees, of which the next is known before it is taken."""

    def __init__(self, passed: Iterator[ReadBatch], skipped: list[tuple[int, str, str]]) -> None:
        self.passed, self.skipped = passed, skipped
        self.next: ReadBatch | None = None

    def within(self, rows: range) -> Iterator[ReadBatch]:
        """Those of some rows, which are next; asks for no more once all rows are accounted for."""
        count = 0
        while count + sum(row in rows for row, _, _ in self.skipped) < len(rows):
            seen = next(self.passed, None) if self.next is None else self.next
            self.next = None
            if seen is None:
                return
            assert seen.index is not None
            if int(seen.index[0]) not in rows:
                self.next = seen
                return
            count += len(seen)
            yield seen
            del seen


@dataclass
class Shard:
    """A shard as it is read: its captures one after the other, then what else is kept of it."""

    index: int
    rows: range
    stream: Stream
    loader: Batches
    none: Tensor  # labels of no image
    width: int

    def __post_init__(self) -> None:
        self.readout, self.labels = Rows(len(self.rows)), Rows(len(self.rows))

    def __iter__(self) -> Iterator[Capture]:
        for seen in self.stream.within(self.rows):
            assert seen.capture is not None
            assert seen.labels is not None
            self.readout.add(seen.readout.float())
            self.labels.add(seen.labels)
            yield seen.capture
            del seen

    def others(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Readouts and labels, and as metadata which images could not be read."""
        skipped = [image for image in self.loader.skipped if image[0] in self.rows]
        metadata = {SKIPPED: json.dumps(skipped)} if skipped else {}
        if len(self.labels):
            return {"readout": self.readout.joined(), "labels": self.labels.joined()}, metadata
        return {"readout": torch.zeros(0, self.width), "labels": self.none}, metadata


def write_raw(
    path: Path, captures: Captures, others: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """What the units of a shard's images wrote, in the model's own dtype, and what else is kept."""
    packed, places = captures.joined()
    tensors = {_UNITS + dtype: tensor for dtype, tensor in packed.items()}
    write_tensors(path, tensors | others, metadata | {_PLACES: json.dumps(places)})


def read_raw(
    path: Path, anatomy: TowerAnatomy
) -> tuple[Capture, dict[str, Tensor], dict[str, str]]:
    """What `write_raw` wrote: the capture where the model is, the other tensors, the metadata."""
    tensors, metadata = read_tensors(path)
    device = anatomy.layers[0].output_projection.weight.device
    packed = {
        name.removeprefix(_UNITS): tensor.to(device)
        for name, tensor in tensors.items()
        if name.startswith(_UNITS)
    }
    places = json.loads(metadata.pop(_PLACES))
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNITS)}
    return capture_from(packed, places, len(anatomy.layers)), others, metadata


def cut(capture: Capture, count: int, size: int) -> Iterator[Capture]:
    """A capture of so many images, cut into batches, each copied when it is its turn."""
    return (capture.rows(rows) for rows in torch.arange(count).split(size) if len(rows))
