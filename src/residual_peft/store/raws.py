"""What the units of a shard's images wrote, kept until the bases are known."""

from pathlib import Path

import torch
from torch import Tensor

from ..anatomy import TowerAnatomy
from ..files import read_tensors, write_tensors
from ..taps import Capture

SINGLE = ("embed", "stream", "pooled", "pooler", "constant")  # of a capture, not by layer


def write_raw(
    path: Path, anatomy: TowerAnatomy, seen: list[tuple[Capture, Tensor, Tensor]]
) -> None:
    """What the units of a shard's images wrote, in the model's own dtype."""

    def joined(parts: list[Tensor | None]) -> Tensor:
        return torch.cat([part.cpu() for part in parts if part is not None])

    captures = [capture for capture, _, _ in seen]
    tensors = {
        "readout": torch.cat([readout for _, readout, _ in seen]),
        "labels": torch.cat([labels for _, _, labels in seen]),
    }
    for name in SINGLE:
        parts = [getattr(capture, name) for capture in captures]
        if any(part is not None for part in parts):
            tensors[name] = joined(parts)
    for layer in range(len(anatomy.layers)):
        tensors[f"heads.{layer}"] = joined([capture.heads[layer] for capture in captures])
        tensors[f"mlps.{layer}"] = joined([capture.mlps[layer] for capture in captures])
    write_tensors(path, tensors)


def read_raw(path: Path, anatomy: TowerAnatomy) -> tuple[Capture, Tensor, Tensor]:
    """What `write_raw` wrote: capture, readout (n, d) and labels (n,) or (n, C)."""
    tensors, _ = read_tensors(path)
    device, layers = anatomy.layers[0].output_projection.weight.device, range(len(anatomy.layers))
    capture = Capture(
        heads=[tensors[f"heads.{layer}"] for layer in layers],
        mlps=[tensors[f"mlps.{layer}"] for layer in layers],
        layers=[None for _ in layers],
    )
    for name in SINGLE:
        setattr(capture, name, tensors.get(name))
    return capture.map(lambda t: t.to(device)), tensors["readout"], tensors["labels"]
