"""Shards of coordinates, cut from one pass over the images, and bases that it fits on the way.

What units wrote lies in raw shards until the bases are known.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.accumulator import BasisAccumulator
from ...bases.basis import SpectralBasis
from ...bases.processes import Processes
from ...bases.reading import Captures, ReadBatch, capture_from, reading
from ...bases.rows import Rows
from ...bases.saved import METADATA_FILE, TENSORS_FILE
from ...data import Batches, ProcessedImages
from ...data.progress import Bar
from ...errors import ResiDualError
from ...hub.files import read_tensors, whole_directory, write_tensors
from ...towers.anatomy import TowerAnatomy
from ...towers.captures import Capture
from ...tuner import (
    ReadoutState,
    adapted_tower,
    coordinates_of,
    put_basis,
    readout_config,
    readout_state,
)
from .layout import BASIS, DTYPES, SKIPPED, rows_of_shard, shard_paths
from .reading import skipped_images

FIELDS = ("heads", "mlps", "embed", "stream", "pooled", "pooler", "constant")
"""Of a capture: all that the contribution of any unit is made of."""
_UNITS, _PLACES = "units.", "places"


class _Pass:
    """The batches of one pass, each for the shard that its images are of."""

    def __init__(self, batches: Iterator[ReadBatch]) -> None:
        self._batches = batches
        self._next: ReadBatch | None = None  # read, and of no shard that asked so far

    def of(self, rows: range) -> ReadBatch | None:
        """The next batch, if it is of these rows; None if not, or at the end."""
        seen = next(self._batches, None) if self._next is None else self._next
        inside = seen is not None and seen.index is not None and int(seen.index[0]) in rows
        self._next = None if inside else seen
        return seen if inside else None


@dataclass
class Shard:
    """A shard as it is read: its captures one after the other, then what else is kept of it."""

    index: int
    rows: range
    passed: _Pass
    loader: Batches
    none: Tensor  # labels of no image
    width: int

    def __post_init__(self) -> None:
        self.readout, self.labels = Rows(len(self.rows)), Rows(len(self.rows))

    def __iter__(self) -> Iterator[Capture]:
        # asks for no more once all rows are accounted for
        while len(self.labels) + len(self.skipped) < len(self.rows):
            seen = self.passed.of(self.rows)
            if seen is None:
                return
            assert seen.capture is not None
            assert seen.labels is not None
            self.readout.add(seen.readout.float())
            self.labels.add(seen.labels)
            yield seen.capture
            del seen

    @property
    def skipped(self) -> list[tuple[int, str, str]]:
        """Its images that could not be read so far."""
        return [image for image in self.loader.skipped if image[0] in self.rows]

    def labelled(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Readouts and labels, and as metadata which images could not be read."""
        metadata = {SKIPPED: json.dumps(self.skipped)} if self.skipped else {}
        if len(self.labels):
            return {"readout": self.readout.joined(), "labels": self.labels.joined()}, metadata
        return {"readout": torch.zeros(0, self.width), "labels": self.none}, metadata


@dataclass(frozen=True)
class Writer:
    """What every shard needs."""

    model: nn.Module
    adapter_name: str
    dataset: ProcessedImages
    folder: Path
    manifest: dict[str, Any]
    num_workers: int | None
    skip: bool
    progress: bool

    def without_basis(self, mine: Iterable[int]) -> None:
        """Coordinates of each shard that is not there."""
        state = readout_state(self.model, self.adapter_name)
        paths = shard_paths(self.folder, self.manifest)
        with self._bar(mine, paths) as bar:
            for shard in self._shards(mine, paths, bar):
                found = self._coordinates(state, shard, len(shard.rows))
                self._write(paths[shard.index], shard.rows, found, state, *shard.labelled())

    def with_basis(self, mine: Sequence[int], processes: Processes) -> None:
        """What the units wrote; then the bases; then coordinates."""
        anatomy, size = adapted_tower(self.model, self.adapter_name), self.manifest["batch_size"]
        paths = shard_paths(self.folder, self.manifest)
        raws = [path.with_name(path.name.replace("shard", "raw")) for path in paths]
        basis_folder = whole_directory(self.folder / BASIS)
        basis_files = [basis_folder / name for name in (METADATA_FILE, TENSORS_FILE)]
        # one process looks for all
        if not processes.gathered(all(path.is_file() for path in basis_files))[0]:
            with processes.in_step(), self._bar(mine, raws) as bar:
                for shard in self._shards(mine, raws, bar):
                    captures = Captures(FIELDS, len(shard.rows))
                    for capture in shard:
                        captures.add(capture)
                    write_raw(raws[shard.index], captures, *shard.labelled())
            basis = self._basis_of([raws[index] for index in mine], processes)
            with processes.in_step():
                if processes.rank == 0:
                    basis.save_pretrained(self.folder / BASIS, dtype=torch.float64)
        with processes.in_step():
            # from the file in any case, so that a run that goes on gets the same
            basis = SpectralBasis.from_pretrained(self.folder / BASIS)
            put_basis(self.model, basis, self.adapter_name)
            state = readout_state(self.model, self.adapter_name)
            for index in mine:
                if not paths[index].is_file():
                    parts, labelled, metadata = read_raw(raws[index], anatomy, size)
                    found = self._coordinates(state, parts, len(labelled["labels"]))
                    rows = rows_of_shard(self.manifest, index)
                    self._write(paths[index], rows, found, state, labelled, metadata)
                raws[index].unlink(missing_ok=True)

    def _basis_of(self, raws: list[Path], processes: Processes) -> SpectralBasis:
        config = readout_config(self.model, self.adapter_name)
        anatomy = adapted_tower(self.model, self.adapter_name)
        accumulator = BasisAccumulator(
            self.model, config.units, side=anatomy.side, readout=anatomy.readout.name
        )
        with processes.in_step():
            for path in raws:
                for part in read_raw(path, anatomy, self.manifest["batch_size"])[0]:
                    accumulator.add(part)
        if processes.world > 1:
            accumulator = accumulator.across_processes()
        return SpectralBasis.from_accumulator(accumulator, config.most_components)

    def _shards(self, mine: Iterable[int], paths: list[Path], bar: Bar) -> Iterator[Shard]:
        """Read shards without a file, in one pass: the next is decoded while one is written.

        A batch never crosses the border of a shard. The first of each shard is checked.
        """
        missing = [index for index in mine if not paths[index].is_file()]
        if not missing:
            return
        anatomy = adapted_tower(self.model, self.adapter_name)
        shards = {index: rows_of_shard(self.manifest, index) for index in missing}
        loader = Batches(
            self.dataset,
            self.manifest["batch_size"],
            self.num_workers,
            self.skip,
            list(shards.values()),
            may_be_empty=True,
        )
        checked: set[int] = set()

        def check(index: Tensor | None) -> bool:
            assert index is not None
            shard = int(index[0]) // self.manifest["shard_size"]
            first = shard not in checked
            checked.add(shard)
            return first

        passed = reading(
            self.model, anatomy, loader, taps=True, check=check, labelled=True, progress=bar.update
        )
        cut = _Pass(passed)
        for index, rows in shards.items():
            none = self.dataset.labels_of([])
            shard = Shard(index, rows, cut, loader, none, anatomy.readout_width)
            yield shard
            bar.update(len(shard.skipped))
        next(passed, None)  # counts the last batch

    def _bar(self, mine: Iterable[int], paths: list[Path]) -> Bar:
        sizes = {index: len(rows_of_shard(self.manifest, index)) for index in mine}
        done = sum(size for index, size in sizes.items() if paths[index].is_file())
        return Bar(
            total=sum(sizes.values()),
            initial=done,
            desc=f"Reading {self.dataset.name}",
            unit="image",
            disable=not self.progress,
        )

    def _coordinates(self, state: ReadoutState, parts: Iterable[Capture], count: int) -> Rows:
        """Of `count` images, as they are stored."""
        found = Rows(count)
        for part in parts:
            coordinates = coordinates_of(state, part)
            stored = coordinates.to(DTYPES[self.manifest["dtype"]])
            if not stored.isfinite().all():
                raise ResiDualError(
                    f"coordinates up to {float(coordinates.abs().max()):.0e} do not fit into "
                    f"{self.manifest['dtype']}; use dtype='bfloat16' or 'float32'."
                )
            found.add(stored)
        return found

    def _write(
        self,
        path: Path,
        rows: range,
        kept: Rows,
        state: ReadoutState,
        labelled: dict[str, Tensor],
        metadata: dict[str, str],
    ) -> None:
        none = torch.zeros(0, len(state.shift), dtype=DTYPES[self.manifest["dtype"]])
        coordinates = kept.joined() if len(kept) else none
        skipped = {row for row, _, _ in skipped_images(path, metadata)}
        ids = torch.tensor([row for row in rows if row not in skipped], dtype=torch.int64)
        write_tensors(path, {"coordinates": coordinates, **labelled, "ids": ids}, metadata)


def write_raw(
    path: Path, captures: Captures, labelled: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """What the units of a shard's images wrote, in the model's own dtype, and what else is kept."""
    packed, places = captures.joined()
    tensors = {_UNITS + dtype: tensor for dtype, tensor in packed.items()}
    write_tensors(path, tensors | labelled, metadata | {_PLACES: json.dumps(places)})


def read_raw(
    path: Path, anatomy: TowerAnatomy, size: int
) -> tuple[Iterator[Capture], dict[str, Tensor], dict[str, str]]:
    """What `write_raw` wrote: captures of `size` images where the model is, and all else.

    Each capture is copied when it is its turn.
    """
    tensors, metadata = read_tensors(path)
    device = anatomy.layers[0].output_projection.weight.device
    packed = {
        name.removeprefix(_UNITS): tensor.to(device)
        for name, tensor in tensors.items()
        if name.startswith(_UNITS)
    }
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNITS)}
    whole = capture_from(packed, json.loads(metadata.pop(_PLACES)), len(anatomy.layers))
    places = torch.arange(len(others["labels"])).split(size)
    return (whole.rows(rows) for rows in places if len(rows)), others, metadata
