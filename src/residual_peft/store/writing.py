"""One pass over the images, in shards that a killed run goes on from."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..bases import METADATA_FILE, TENSORS_FILE, SpectralBasis
from ..data import Batches, ProcessedImages
from ..errors import ResiDualError
from ..files import whole_directory, write_json, write_tensors
from ..fingerprint import Fingerprint
from ..processes import Processes
from ..reading import Captures, reading
from ..rows import Rows
from ..spectra import BasisAccumulator
from ..taps import Capture
from ..tuner import (
    ReadoutState,
    active_adapter,
    adapted_tower,
    coordinates_of,
    put_basis,
    readout_config,
    readout_state,
    restart_gains,
)
from .layout import (
    BASIS,
    BATCH,
    DTYPES,
    FORMAT,
    MANIFEST,
    SHARD,
    SKIPPED,
    adapter_digest,
    begin_together,
    data_digest,
    processor_digest,
    read_manifest,
    rows_of_shard,
    shard_paths,
)
from .raws import FIELDS, cut, read_raw, write_raw
from .reading import CoordinateStore, skipped_images

logger = logging.getLogger(__name__)


def write_coordinates(
    model: nn.Module,
    dataset: ProcessedImages,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str | None = None,
    fit_basis: bool = False,
    dtype: str = "float32",
    shard_size: int = SHARD,
    batch_size: int = BATCH,
    num_workers: int | None = None,
    skip: bool = True,
    across_processes: bool = False,
    progress: bool = False,
) -> CoordinateStore:
    """Write the coordinates of all images of a split, or go on where an earlier call stopped.

    Memory does not grow with the images. The result is the same bytes, however often the work was
    interrupted; another number of processes fits bases that are equal to rounding.

    Args:
        model: a model with a ResiDual adapter in readout mode.
        dataset: labelled images, as `ProcessedImages(split, image_processor)`.
        directory: made if missing, for one run at a time; its processes must all see it.
        adapter_name: None for the active adapter.
        fit_basis: fit the adapter's bases from the same images in the same pass; its gains restart.
            Needs (2 L + 2) D numbers of disk per image meanwhile.
        dtype: of the coordinates: "float32", "float16" or "bfloat16".
        shard_size: images per file.
        batch_size: images per forward pass.
        num_workers: processes that decode images, as for `batches`.
        skip: leave out images that cannot be read; `CoordinateStore.skipped` lists them, with the
            reasons. Otherwise the first is an error.
        across_processes: under `torch.distributed`, each process writes every so-many-th shard; one
            may be left without any.
        progress: whether to show a bar with images per second and the time left.

    Raises:
        ResiDualError: no images, none that can be read, no labels, bad options, or a directory
            with the coordinates of another model, adapter, processor or data set; across processes,
            in all of them.
    """
    processes = Processes.running() if across_processes else Processes()
    folder, name = Path(directory), active_adapter(model) if adapter_name is None else adapter_name
    with processes.in_step():
        _check_options(dataset, dtype, shard_size, batch_size)
        fit_basis = fit_basis and readout_config(model, name).needs_basis
        if fit_basis:
            restart_gains(model, adapter_name=name)
        manifest = {
            "format_version": FORMAT,
            "model": Fingerprint.of(model).to_dict(),
            "processor": processor_digest(dataset.image_processor),
            "data": data_digest(dataset),
            "adapter": None if fit_basis else adapter_digest(readout_state(model, name)),
            "fits_basis": str(readout_config(model, name).units) if fit_basis else None,
            "images": len(dataset),
            "dtype": dtype,
            "shard_size": shard_size,
            "batch_size": batch_size,
        }
    begin_together(folder, manifest, processes)
    writer = _Writer(
        model, name, dataset, folder, DTYPES[dtype], batch_size, num_workers, skip, progress
    )
    mine = range(processes.rank, len(shard_paths(folder, manifest)), processes.world)
    if fit_basis:
        writer.with_basis(manifest, mine, processes)
    else:
        with processes.in_step():
            writer.without_basis(manifest, mine)
    state = readout_state(model, name).map(Tensor.cpu)
    finished = {**manifest, "adapter": adapter_digest(state), "complete": True}
    with processes.in_step():
        if processes.rank == 0 and read_manifest(folder) != finished:
            write_json(folder / MANIFEST, finished)
    store = CoordinateStore.open(folder, model, name)
    _tell_skipped(store, dataset)
    return store


def _tell_skipped(store: CoordinateStore, dataset: ProcessedImages) -> None:
    if not store.skipped:
        return
    some = ", ".join(f"{file} ({reason})" for _, file, reason in store.skipped[:3])
    some += ", ..." if len(store.skipped) > 3 else ""
    if not len(store):
        raise ResiDualError(
            f"wanted images, but none of the {len(dataset)} of {dataset.name} could be read: "
            f"{some}."
        )
    logger.warning(
        "skipped %d of the %d images of %s: %s",
        len(store.skipped),
        len(dataset),
        dataset.name,
        some,
    )


def _check_options(dataset: ProcessedImages, dtype: str, shard_size: int, batch_size: int) -> None:
    if dtype not in DTYPES:
        raise ResiDualError(f"wanted dtype {', '.join(DTYPES)}, got {dtype!r}.")
    if shard_size < 1 or batch_size < 1:
        raise ResiDualError(
            f"wanted shard_size and batch_size of 1 or more, got {shard_size} and {batch_size}."
        )
    if len(dataset) == 0:
        raise ResiDualError(f"wanted images, {dataset.name} has none.")
    if "label" not in dataset.dataset.column_names:
        raise ResiDualError(f"wanted labelled images, {dataset.name} has no column 'label'.")


@dataclass(frozen=True)
class _Writer:
    """What every shard needs."""

    model: nn.Module
    adapter_name: str
    dataset: ProcessedImages
    folder: Path
    dtype: torch.dtype
    batch_size: int
    num_workers: int | None
    skip: bool
    progress: bool

    def without_basis(self, manifest: dict[str, Any], mine: Iterable[int]) -> None:
        """Coordinates of each shard that is not there."""
        state = readout_state(self.model, self.adapter_name)
        paths = shard_paths(self.folder, manifest)
        with self._bar(manifest, mine, paths) as bar:
            for index in (i for i in mine if not paths[i].is_file()):
                rows = rows_of_shard(manifest, index)
                found = Rows(len(rows))

                def keep(capture: Capture, found: Rows = found) -> None:
                    found.add(self._stored(coordinates_of(state, capture)))

                others, metadata = self._read(manifest, index, bar, keep)
                self._write(paths[index], rows, found, state, others, metadata)

    def with_basis(
        self, manifest: dict[str, Any], mine: Sequence[int], processes: Processes
    ) -> None:
        """What the units wrote; then the bases; then coordinates."""
        anatomy, paths = (
            adapted_tower(self.model, self.adapter_name),
            shard_paths(self.folder, manifest),
        )
        raws = [path.with_name(path.name.replace("shard", "raw")) for path in paths]
        basis_folder = whole_directory(self.folder / BASIS)
        basis_files = [basis_folder / name for name in (METADATA_FILE, TENSORS_FILE)]
        # one process looks for all
        if not processes.gathered(all(path.is_file() for path in basis_files))[0]:
            with processes.in_step(), self._bar(manifest, mine, raws) as bar:
                for index in (i for i in mine if not raws[i].is_file()):
                    seen = Captures(FIELDS, len(rows_of_shard(manifest, index)))
                    others, metadata = self._read(manifest, index, bar, seen.add)
                    write_raw(raws[index], seen, others, metadata)
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
                    found, rows = Rows(count), rows_of_shard(manifest, index)
                    for part in cut(capture, count, self.batch_size):
                        found.add(self._stored(coordinates_of(state, part)))
                    self._write(paths[index], rows, found, state, others, metadata)
                raws[index].unlink(missing_ok=True)

    def _basis_of(self, raws: list[Path], processes: Processes) -> SpectralBasis:
        config = readout_config(self.model, self.adapter_name)
        anatomy = adapted_tower(self.model, self.adapter_name)
        accumulator = BasisAccumulator(
            self.model, config.units, side=anatomy.side, readout=anatomy.readout
        )
        with processes.in_step():
            for path in raws:
                capture, others, _ = read_raw(path, anatomy)
                for part in cut(capture, len(others["labels"]), self.batch_size):
                    accumulator.add(part)
        if processes.world > 1:
            accumulator = accumulator.across_processes()
        components = None if config.component_pattern else config.components
        return SpectralBasis.from_accumulator(accumulator, components)

    def _read(
        self,
        manifest: dict[str, Any],
        index: int,
        bar: tqdm,
        keep: Callable[[Capture], None],
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Readouts and labels of a shard's images, and which could not be read.

        A batch never crosses the border of a shard. The first of each shard is checked.
        """
        anatomy, rows = adapted_tower(self.model, self.adapter_name), rows_of_shard(manifest, index)
        loader = Batches(
            self.dataset, self.batch_size, self.num_workers, self.skip, rows, may_be_empty=True
        )
        readout, labels = Rows(len(rows)), Rows(len(rows))
        for seen in reading(
            self.model,
            anatomy,
            loader,
            taps=True,
            check="first",
            labelled=True,
            progress=bar.update,
        ):
            assert seen.capture is not None
            assert seen.labels is not None
            keep(seen.capture)
            readout.add(seen.readout.float())
            labels.add(seen.labels)
        bar.update(len(loader.skipped))
        skipped = {SKIPPED: json.dumps(loader.skipped)} if loader.skipped else {}
        if len(labels):
            return {"readout": readout.joined(), "labels": labels.joined()}, skipped
        classes = self.dataset.classes
        none = torch.zeros(0, dtype=torch.int64)
        return {
            "readout": torch.zeros(0, anatomy.readout_width),
            "labels": none if classes is None else none.new_zeros(0, classes, dtype=torch.uint8),
        }, skipped

    def _bar(self, manifest: dict[str, Any], mine: Iterable[int], paths: list[Path]) -> tqdm:
        sizes = {index: len(rows_of_shard(manifest, index)) for index in mine}
        done = sum(size for index, size in sizes.items() if paths[index].is_file())
        return tqdm(
            total=sum(sizes.values()),
            initial=done,
            desc="Reading images",
            unit="image",
            disable=not self.progress,
        )

    def _stored(self, coordinates: Tensor) -> Tensor:
        stored = coordinates.to(self.dtype)
        if not stored.isfinite().all():
            raise ResiDualError(
                f"coordinates up to {float(coordinates.abs().max()):.0e} do not fit into "
                f"{str(self.dtype).split('.')[-1]}; use dtype='bfloat16' or 'float32'."
            )
        return stored

    def _write(
        self,
        path: Path,
        rows: range,
        found: Rows,
        state: ReadoutState,
        others: dict[str, Tensor],
        metadata: dict[str, str],
    ) -> None:
        none = torch.zeros(0, len(state.shift), dtype=self.dtype)
        coordinates = found.joined() if len(found) else none
        skipped = {row for row, _, _ in skipped_images(path, metadata)}
        ids = torch.tensor([row for row in rows if row not in skipped], dtype=torch.int64)
        write_tensors(path, {"coordinates": coordinates, **others, "ids": ids}, metadata)
