"""One pass over the images, in shards that a killed run goes on from."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...bases.accumulator import BasisAccumulator
from ...bases.basis import METADATA_FILE, TENSORS_FILE, SpectralBasis
from ...bases.fingerprint import Fingerprint
from ...bases.processes import Processes
from ...bases.reading import Captures, Seen, reading
from ...bases.rows import Rows
from ...data import Batches, ProcessedImages, SkippedImage
from ...errors import ResiDualError
from ...hub.files import path_of, whole_directory, write_json, write_tensors
from ...towers.captures import Capture
from ...tuner import (
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
    folder, name = (
        path_of(directory),
        active_adapter(model) if adapter_name is None else adapter_name,
    )
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
    some = ", ".join(str(SkippedImage(*found)) for _, *found in store.skipped[:3])
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
            missing = [index for index in mine if not paths[index].is_file()]
            for shard in self._shards(manifest, missing, bar):
                found = Rows(len(shard.rows))
                for seen in shard:
                    found.add(self._stored(coordinates_of(state, seen)))
                self._write(paths[shard.index], shard.rows, found, state, *shard.others())

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
                missing = [index for index in mine if not raws[index].is_file()]
                for shard in self._shards(manifest, missing, bar):
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
                    found, rows = Rows(count), rows_of_shard(manifest, index)
                    for part in cut(capture, count, self.batch_size):
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
                for part in cut(capture, len(others["labels"]), self.batch_size):
                    accumulator.add(part)
        if processes.world > 1:
            accumulator = accumulator.across_processes()
        return SpectralBasis.from_accumulator(accumulator, config.most_components)

    def _shards(
        self, manifest: dict[str, Any], missing: Sequence[int], bar: tqdm
    ) -> "Iterator[_Shard]":
        """Read shards in one pass, so that images of the next are decoded while one is written.

        A batch never crosses the border of a shard. The first of each shard is checked.
        """
        if not missing:
            return
        anatomy = adapted_tower(self.model, self.adapter_name)
        shards = {index: rows_of_shard(manifest, index) for index in missing}
        loader = Batches(
            self.dataset,
            self.batch_size,
            self.num_workers,
            self.skip,
            list(shards.values()),
            may_be_empty=True,
        )
        checked: set[int] = set()

        def check(index: Tensor | None) -> bool:
            assert index is not None
            shard = int(index[0]) // manifest["shard_size"]
            return shard not in checked and not checked.add(shard)  # type: ignore[func-returns-value]

        passed = reading(
            self.model,
            anatomy,
            loader,
            taps=True,
            check=check,
            labelled=True,
            progress=bar.update,
        )
        stream = _Stream(passed, loader.skipped)
        for index, rows in shards.items():
            none = self.dataset.labels_of([])
            shard = _Shard(index, rows, stream, loader, none, anatomy.readout_width)
            yield shard
            bar.update(sum(row in rows for row, _, _ in loader.skipped))
        next(passed, None)  # counts the last batch

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
        kept: Rows,
        state: ReadoutState,
        others: dict[str, Tensor],
        metadata: dict[str, str],
    ) -> None:
        none = torch.zeros(0, len(state.shift), dtype=self.dtype)
        coordinates = kept.joined() if len(kept) else none
        skipped = {row for row, _, _ in skipped_images(path, metadata)}
        ids = torch.tensor([row for row in rows if row not in skipped], dtype=torch.int64)
        write_tensors(path, {"coordinates": coordinates, **others, "ids": ids}, metadata)


class _Stream:
    """What a pass sees, of which the next is known before it is taken."""

    def __init__(self, passed: Iterator[Seen], skipped: list[tuple[int, str, str]]) -> None:
        self.passed, self.skipped = passed, skipped
        self.next: Seen | None = None

    def within(self, rows: range) -> Iterator[Seen]:
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
class _Shard:
    """A shard as it is read: its captures one after the other, then what else is kept of it."""

    index: int
    rows: range
    stream: _Stream
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
