"""One pass over the images, in shards that a killed run goes on from."""

import logging
import os

from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...bases.processes import Processes
from ...data import ProcessedImages, SkippedImage
from ...errors import ResiDualError, some
from ...hub.files import path_of, write_json
from ...tuner import active_adapter, readout_config, readout_state, restart_gains
from .layout import (
    BATCH,
    DTYPES,
    FORMAT,
    MANIFEST,
    SHARD,
    adapter_digest,
    begin_together,
    data_digest,
    processor_digest,
    read_manifest,
    shard_paths,
)
from .reading import CoordinateStore
from .writer import Writer

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
    folder = path_of(directory)
    name = active_adapter(model) if adapter_name is None else adapter_name
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
    writer = Writer(model, name, dataset, folder, manifest, num_workers, skip, progress)
    mine = range(processes.rank, len(shard_paths(folder, manifest)), processes.world)
    if fit_basis:
        writer.with_basis(mine, processes)
    else:
        with processes.in_step():
            writer.without_basis(mine)
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
    files = some([SkippedImage(*found) for _, *found in store.skipped], 3)
    if not len(store):
        raise ResiDualError(
            f"wanted images, but none of the {len(dataset)} of {dataset.name} could be read: "
            f"{files}."
        )
    logger.warning(
        "skipped %d of the %d images of %s: %s",
        len(store.skipped),
        len(dataset),
        dataset.name,
        files,
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
