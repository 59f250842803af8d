"""Shards of coordinates, one after the other, and the bases that are fitted on the way."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.accumulator import BasisAccumulator
from ...bases.basis import SpectralBasis
from ...bases.processes import Processes
from ...bases.reading import Captures, reading
from ...bases.rows import Rows
from ...bases.saved import METADATA_FILE, TENSORS_FILE
from ...data import Batches, ProcessedImages
from ...data.progress import Bar
from ...errors import ResiDualError
from ...hub.files import whole_directory, write_tensors
from ...tuner import (
    ReadoutState,
    adapted_tower,
    coordinates_of,
    put_basis,
    readout_config,
    readout_state,
)
from .layout import BASIS, DTYPES, rows_of_shard, shard_paths
from .reading import skipped_images
from .shards import FIELDS, Shard, Stream, cut, read_raw, write_raw


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
            missing = [index for index in mine if not paths[index].is_file()]
            for shard in self._shards(missing, bar):
                found = Rows(len(shard.rows))
                for seen in shard:
                    found.add(self._stored(coordinates_of(state, seen)))
                self._write(paths[shard.index], shard.rows, found, state, *shard.others())

    def with_basis(self, mine: Sequence[int], processes: Processes) -> None:
        """What the units wrote; then the bases; then coordinates."""
        anatomy = adapted_tower(self.model, self.adapter_name)
        paths = shard_paths(self.folder, self.manifest)
        raws = [path.with_name(path.name.replace("shard", "raw")) for path in paths]
        basis_folder = whole_directory(self.folder / BASIS)
        basis_files = [basis_folder / name for name in (METADATA_FILE, TENSORS_FILE)]
        # one process looks for all
        if not processes.gathered(all(path.is_file() for path in basis_files))[0]:
            with processes.in_step(), self._bar(mine, raws) as bar:
                missing = [index for index in mine if not raws[index].is_file()]
                for shard in self._shards(missing, bar):
                    captures = Captures(FIELDS, len(shard.rows))
                    for capture in shard:
                        captures.add(capture)
                    write_raw(raws[shard.index], captures, *shard.others())
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
                    capture, others, metadata = read_raw(raws[index], anatomy)
                    count = len(others["labels"])
                    found, rows = Rows(count), rows_of_shard(self.manifest, index)
                    for part in cut(capture, count, self.manifest["batch_size"]):
                        found.add(self._stored(coordinates_of(state, part)))
                    self._write(paths[index], rows, found, state, others, metadata)
                raws[index].unlink(missing_ok=True)

    def _basis_of(self, raws: list[Path], processes: Processes) -> SpectralBasis:
        config = readout_config(self.model, self.adapter_name)
        anatomy = adapted_tower(self.model, self.adapter_name)
        accumulator = BasisAccumulator(
            self.model, config.units, side=anatomy.side, readout=anatomy.readout.name
        )
        with processes.in_step():
            for path in raws:
                capture, others, _ = read_raw(path, anatomy)
                for part in cut(capture, len(others["labels"]), self.manifest["batch_size"]):
                    accumulator.add(part)
        if processes.world > 1:
            accumulator = accumulator.across_processes()
        return SpectralBasis.from_accumulator(accumulator, config.most_components)

    def _shards(self, missing: Sequence[int], bar: Bar) -> Iterator[Shard]:
        """Read shards in one pass, so that images of the next are decoded while one is written.

        A batch never crosses the border of a shard. The first of each shard is checked.
        """
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
            return shard not in checked and not checked.add(shard)  # type: ignore[func-returns-value]

        passed = reading(
            self.model, anatomy, loader, taps=True, check=check, labelled=True, progress=bar.update
        )
        stream = Stream(passed, loader.skipped)
        for index, rows in shards.items():
            none = self.dataset.labels_of([])
            shard = Shard(index, rows, stream, loader, none, anatomy.readout_width)
            yield shard
            bar.update(sum(row in rows for row, _, _ in loader.skipped))
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

    def _stored(self, coordinates: Tensor) -> Tensor:
        stored = coordinates.to(DTYPES[self.manifest["dtype"]])
        if not stored.isfinite().all():
            raise ResiDualError(
                f"coordinates up to {float(coordinates.abs().max()):.0e} do not fit into "
                f"{self.manifest['dtype']}; use dtype='bfloat16' or 'float32'."
            )
        return stored

    def _write(
        self,
        path: Path,
        rows: range,
        kept: Rows,
        state: ReadoutState,
        others: dict[str, Tensor],
        metadata: dict[str, str],
    ) -> None:
        none = torch.zeros(0, len(state.shift), dtype=DTYPES[self.manifest["dtype"]])
        coordinates = kept.joined() if len(kept) else none
        skipped = {row for row, _, _ in skipped_images(path, metadata)}
        ids = torch.tensor([row for row in rows if row not in skipped], dtype=torch.int64)
        write_tensors(path, {"coordinates": coordinates, **others, "ids": ids}, metadata)
