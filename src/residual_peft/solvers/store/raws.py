"""What the units of a shard's images wrote, kept until the bases are known."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...bases.reading import Captures, capture_from
from ...hub.files import read_tensors, write_tensors
from ...towers.anatomy import TowerAnatomy
from ...towers.captures import Capture

FIELDS = ("heads", "mlps", "embed", "stream", "pooled", "pooler", "constant")
"""Of a capture: all that the contribution of any unit is made of."""
_UNITS, _PLACES = "units.", "places"


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
