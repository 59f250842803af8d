"""One pass over the images, in shards that a killed run goes on from."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..bases import METADATA_FILE, TENSORS_FILE, SpectralBasis
from ..data import ProcessedImages, collate
from ..decomposition import (
    batch_size,
    checked_capture,
    checked_inputs,
    run_tower,
    unadapted,
)
from ..errors import ResiDualError
from ..files import whole_directory, write_json, write_tensors
from ..fingerprint import Fingerprint
from ..processes import Processes
from ..spectra import BasisAccumulator
from ..taps import Capture, tapped
from ..tuner import (
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
    MANIFEST,
    SHARD,
    adapter_digest,
    begin_together,
    data_digest,
    processor_digest,
    read_manifest,
    rows_of_shard,
    shard_paths,
)
from .raws import read_raw, write_raw
from .reading import CoordinateStore


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
    num_workers: int = 0,
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
        num_workers: processes that decode images.
        across_processes: under `torch.distributed`, each process writes every so-many-th shard; one
            may be left without any.
        progress: whether to show a bar with images per second and the time left.

    Raises:
        ResiDualError: no images, one that cannot be read, no labels, bad options, or a directory
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
            "format_version": 1,
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
    writer = _Writer(model, name, dataset, folder, DTYPES[dtype], batch_size, num_workers, progress)
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
    return CoordinateStore.open(folder, model, name)


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
    num_workers: int
    progress: bool

    def without_basis(self, manifest: dict[str, Any], mine: Iterable[int]) -> None:
        """Coordinates of each shard that is not there."""
        state = readout_state(self.model, self.adapter_name)
        paths = shard_paths(self.folder, manifest)
        with self._bar(manifest, mine, paths) as bar:
            for index in (i for i in mine if not paths[i].is_file()):
                seen = list(self._captures(manifest, index, bar))
                coordinates = torch.cat([coordinates_of(state, c).cpu() for c, _, _ in seen])
                readout = torch.cat([y for _, y, _ in seen])
                labels = torch.cat([labels for _, _, labels in seen])
                self._write(paths[index], manifest, index, coordinates, readout, labels)

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
                    seen = list(self._captures(manifest, index, bar))
                    write_raw(raws[index], anatomy, seen)
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
                    capture, readout, labels = read_raw(raws[index], anatomy)
                    found = [
                        coordinates_of(state, capture.rows(rows)).cpu()
                        for rows in torch.arange(len(labels)).split(self.batch_size)
                    ]
                    self._write(paths[index], manifest, index, torch.cat(found), readout, labels)
                raws[index].unlink(missing_ok=True)

    def _basis_of(self, raws: list[Path], processes: Processes) -> SpectralBasis:
        config = readout_config(self.model, self.adapter_name)
        anatomy = adapted_tower(self.model, self.adapter_name)
        accumulator = BasisAccumulator(
            self.model, config.units, side=anatomy.side, readout=anatomy.readout
        )
        with processes.in_step():
            for path in raws:
                capture, _, labels = read_raw(path, anatomy)
                for rows in torch.arange(len(labels)).split(self.batch_size):
                    accumulator.add(capture.rows(rows))
        if processes.world > 1:
            accumulator = accumulator.across_processes()
        components = None if config.component_pattern else config.components
        return SpectralBasis.from_accumulator(accumulator, components)

    def _captures(
        self, manifest: dict[str, Any], index: int, bar: tqdm
    ) -> Iterator[tuple[Capture, Tensor, Tensor]]:
        """What the units wrote, readout and labels of a shard's images, batch by batch.

        A batch never crosses the border of a shard. The first of each shard is checked.
        """
        anatomy = adapted_tower(self.model, self.adapter_name)
        images = Subset(self.dataset, list(rows_of_shard(manifest, index)))
        loader = DataLoader(
            images, self.batch_size, collate_fn=collate, num_workers=self.num_workers
        )
        for number, batch in enumerate(loader):
            inputs = checked_inputs(anatomy, batch)
            if number == 0:
                capture, readout = checked_capture(self.model, anatomy, inputs)
            else:
                with torch.no_grad(), unadapted(self.model), tapped(anatomy) as tap:
                    readout = run_tower(self.model, inputs, anatomy=anatomy)
                    capture = tap.take()
            bar.update(batch_size(inputs))
            yield capture, readout.float().cpu(), batch["labels"]

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

    def _write(
        self,
        path: Path,
        manifest: dict[str, Any],
        index: int,
        coordinates: Tensor,
        readout: Tensor,
        labels: Tensor,
    ) -> None:
        stored = coordinates.to(self.dtype)
        if not stored.isfinite().all():
            raise ResiDualError(
                f"coordinates up to {float(coordinates.abs().max()):.0e} do not fit into "
                f"{str(self.dtype).split('.')[-1]}; use dtype='bfloat16' or 'float32'."
            )
        ids = torch.tensor(rows_of_shard(manifest, index), dtype=torch.int64)
        write_tensors(
            path, {"coordinates": stored, "readout": readout, "labels": labels, "ids": ids}
        )
