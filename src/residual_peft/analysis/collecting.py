"""One pass of the unadapted model over some images -> `Contributions`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.decomposition import contributions, head_inputs
from ..bases.reading import reading
from ..bases.rows import BLOCK, Rows
from ..data.progress import Progress, images_of
from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.registry import find_tower
from ..towers.units import Unit
from .contributions import Contributions, UnitContribution, check_count, in_principal_axes


def collect_contributions(
    model: nn.Module,
    batches: Iterable[Any],
    units: Iterable[str] = ("embed", "head", "mlp"),
    *,
    layers: Iterable[int] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress = False,
) -> Contributions:
    """Run the unadapted model once over some images and keep what every unit wrote.

    Memory: N Σ k_u numbers; 50,000 images of a ViT-L/14's 384 heads take 5 GB in float32. Choose
    `layers`, kinds of units or float16 where that is too much. The units of every batch are checked
    to add up to the model's own readout.

    Args:
        model: a model with a known image tower, adapted or not.
        batches: `pixel_values` tensors (B, C, H, W), or mappings that hold them and, for what needs
            them, `labels` (B,).
        units: kinds of units: "embed", "head", "mlp".
        layers: keep heads and MLPs of these layers only.
        dtype: of the coordinates.
        progress: True for a bar, or what to call after each batch with its number of images.

    Raises:
        ResiDualError: no images, only one, no unit left, or units that do not add up.
    """
    anatomy = find_tower(model)
    inside = None if layers is None else set(layers)
    chosen = [
        unit
        for unit in anatomy.units(units)
        if unit.kind != "output" and (inside is None or unit.layer is None or unit.layer in inside)
    ]
    if not chosen:
        raise ResiDualError(f"no unit is left with units={units!r} and layers={layers!r}.")
    expected = images_of(batches)
    collector = _Collector(anatomy, chosen, dtype, expected)
    readouts, labels = Rows(expected), Rows(expected)
    for seen in reading(model, anatomy, batches, taps=True, progress=progress):
        assert seen.capture is not None
        collector.add(seen.capture)
        readouts.add(seen.readout.float())
        if seen.labels is not None:
            labels.add(seen.labels)
    check_count(len(readouts))
    if len(labels) not in (0, len(readouts)):
        raise ResiDualError(
            f"wanted labels in all batches or in none, got {len(labels)} for {len(readouts)} "
            "images."
        )
    known = labels.joined() if len(labels) else None
    return Contributions(tuple(chosen), tuple(collector.finish()), readouts.joined(), known)


class _Collector:
    """Per unit, what it wrote in a fixed orthonormal frame, batch by batch."""

    def __init__(
        self, anatomy: TowerAnatomy, units: list[Unit], dtype: torch.dtype, expected: int | None
    ) -> None:
        self.anatomy, self.units, self.dtype = anatomy, units, dtype
        self.seen = {unit: Rows(expected, BLOCK // len(units)) for unit in units}
        self.frames: dict[int, Tensor] = {}  # per layer: Q of the heads (H, d, r)
        self.maps: dict[int, Tensor] = {}  # per layer: T of the heads (H, r, e + 1)
        for layer in sorted({u.layer for u in units if u.kind == "head" and u.layer is not None}):
            self.frames[layer], self.maps[layer] = torch.linalg.qr(anatomy.head_factor(layer))

    def add(self, capture: Capture) -> None:
        for layer, triangle in self.maps.items():
            inside = torch.einsum(
                "bhe,hre->hbr", head_inputs(self.anatomy, capture, layer), triangle
            ).to("cpu", self.dtype)
            for unit in (u for u in self.units if u.kind == "head" and u.layer == layer):
                assert unit.head is not None
                self.seen[unit].add(inside[unit.head])
        others = [unit for unit in self.units if unit.kind != "head"]
        if others:
            written = contributions(self.anatomy, capture, others).to("cpu", self.dtype)
            for index, unit in enumerate(others):
                self.seen[unit].add(written[:, index])

    def finish(self) -> Iterator[UnitContribution]:
        for unit in self.units:
            frame = None
            if unit.kind == "head":
                assert unit.layer is not None
                frame = self.frames[unit.layer][unit.head].T.cpu()  # (r, d)
            yield in_principal_axes(unit, self.seen.pop(unit).joined(), frame)
