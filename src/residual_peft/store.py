"""Coordinates on disk: one pass over the images, in shards that a killed run goes on from.

A store is a directory:

    manifest.json              what it belongs to: model, adapter, processor, images, sizes
    shard-00000.safetensors    coordinates (n, K), readout (n, d), labels (n,) or (n, C), ids (n,)
    basis/                     where the pass fitted the adapter's bases, too

Each shard holds the same images whoever writes it and appears whole or not at all. So a run goes on
at the first one that is missing, and any number of processes share the work, with one result.
Until the bases of such a pass are known, `raw-*.safetensors` hold what the units wrote, instead.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from .anatomy import TowerAnatomy, find_tower
from .bases import METADATA_FILE, TENSORS_FILE, SpectralBasis
from .coordinates import Coordinates
from .data import ProcessedImages, collate
from .decomposition import checked_capture, run_tower, unadapted
from .errors import ResiDualError
from .files import read_json, read_tensors, write_json, write_tensors
from .fingerprint import Fingerprint
from .processes import Processes
from .spectra import BasisAccumulator
from .taps import Capture, tapped
from .tuner import (
    ReadoutState,
    active_adapter,
    coordinates_of,
    put_basis,
    readout_config,
    readout_state,
    restart_gains,
)

MANIFEST, BASIS = "manifest.json", "basis"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARD, BATCH = 4096, 64  # images; 260 MB of a ViT-B/16's 15,504 coordinates in float32


def coordinate_bytes(
    images: int,
    coordinates: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    *,
    classes: int | None = None,
) -> int:
    """Bytes of a store's tensors: coordinates and readout, label and id per image.

    Args:
        images: N.
        coordinates: of each image, K.
        width: of the readout, d.
        dtype: of the coordinates.
        classes: C where an image may have several labels, which take a byte each; None for one.

    >>> coordinate_bytes(1_000_000, 15_504, 512, torch.bfloat16) / 1e9  # ViT-B/16, heads and MLPs
    33.072
    """
    # the readout stays in float32: it is what every gain of 1 gives
    labels = 8 if classes is None else classes
    return images * (coordinates * dtype.itemsize + width * 4 + labels + 8)


@dataclass(frozen=True)
class CoordinateStore:
    """A finished store, for the solvers as `Coordinates` are, its shards mapped into memory.

    Attributes:
        directory: where it lies.
        manifest: what it belongs to.
        state: of the adapter that the coordinates are of.
    """

    directory: Path
    manifest: dict[str, Any]
    state: ReadoutState

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        model: nn.Module,
        adapter_name: str | None = None,
    ) -> "CoordinateStore":
        """Open a finished store for the adapter that it was written with.

        Raises:
            ResiDualError: there is none, it is not finished, or it belongs to another model or
                adapter.
        """
        folder = Path(directory)
        manifest = read_json(folder / MANIFEST)
        if not manifest.get("complete"):
            raise ResiDualError(
                f"'{folder}' is not finished; call write_coordinates with the same arguments again."
            )
        Fingerprint.from_dict(manifest["model"]).check(model, f"'{folder}'")
        state = readout_state(model, adapter_name).map(Tensor.cpu)
        if adapter_digest(state) != manifest["adapter"]:
            raise ResiDualError(
                f"'{folder}' was written for an adapter with another basis or other units; load "
                "that one, or write the coordinates anew."
            )
        return cls(folder, manifest, state)

    def __len__(self) -> int:
        return int(self.manifest["images"])

    @cached_property
    def parts(self) -> tuple[Coordinates, ...]:
        """One `Coordinates` per shard; read from disk when they are touched."""
        return tuple(
            Coordinates(t["readout"], t["labels"], t["coordinates"], self.state)
            for t in self._shards
        )

    @cached_property
    def labels(self) -> Tensor:
        """(N,), or with several labels per image zeros and ones (N, C)."""
        return torch.cat([tensors["labels"] for tensors in self._shards])

    @cached_property
    def ids(self) -> Tensor:
        """The row of each image in the data set, (N,)."""
        return torch.cat([tensors["ids"] for tensors in self._shards])

    @property
    def mean_length(self) -> float:
        """Mean ‖y‖ of the readouts."""
        lengths = sum(float(part.readout.double().norm(dim=1).sum()) for part in self.parts)
        return lengths / len(self)

    def rows(self, index: Tensor) -> Coordinates:
        """Those of some of the images, in memory, float32."""
        size, index = self.manifest["shard_size"], index.cpu()
        # labels travel along; everything else is read where it lies
        width, count = self.parts[0].readout.shape[1], self.parts[0].coordinates.shape[1]
        readout = torch.empty(len(index), width, dtype=self.parts[0].readout.dtype)
        coordinates = torch.empty(len(index), count, dtype=readout.dtype)
        shards = index // size
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero().flatten()
            part, inside = self.parts[shard], index[here] - shard * size
            readout[here] = part.readout[inside]
            coordinates[here] = part.coordinates[inside].to(readout.dtype)
        return Coordinates(readout, self.labels[index], coordinates, self.state)

    def load(self) -> Coordinates:
        """All of it in memory, float32: `coordinate_bytes` says how much that takes."""
        return self.rows(torch.arange(len(self)))

    @cached_property
    def _shards(self) -> list[dict[str, Tensor]]:
        return [read_tensors(path)[0] for path in _paths(self.directory, self.manifest)]


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
    _begin_together(folder, manifest, processes)
    writer = _Writer(model, name, dataset, folder, DTYPES[dtype], batch_size, num_workers, progress)
    mine = range(processes.rank, len(_paths(folder, manifest)), processes.world)
    if fit_basis:
        writer.with_basis(manifest, mine, processes)
    else:
        with processes.in_step():
            writer.without_basis(manifest, mine)
    state = readout_state(model, name).map(Tensor.cpu)
    finished = {**manifest, "adapter": adapter_digest(state), "complete": True}
    with processes.in_step():
        if processes.rank == 0 and read_json(folder / MANIFEST) != finished:
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
        paths = _paths(self.folder, manifest)
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
        anatomy, paths = find_tower(self.model), _paths(self.folder, manifest)
        raws = [path.with_name(path.name.replace("shard", "raw")) for path in paths]
        basis_files = [self.folder / BASIS / name for name in (METADATA_FILE, TENSORS_FILE)]
        # one process looks for all; both files, as a kill may come between them
        if not processes.gathered(all(path.is_file() for path in basis_files))[0]:
            with processes.in_step(), self._bar(manifest, mine, raws) as bar:
                for index in (i for i in mine if not raws[i].is_file()):
                    seen = list(self._captures(manifest, index, bar))
                    _write_raw(raws[index], anatomy, seen)
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
                    capture, readout, labels = _read_raw(raws[index], anatomy)
                    found = [
                        coordinates_of(state, capture.rows(rows)).cpu()
                        for rows in torch.arange(len(labels)).split(self.batch_size)
                    ]
                    self._write(paths[index], manifest, index, torch.cat(found), readout, labels)
                raws[index].unlink(missing_ok=True)

    def _basis_of(self, raws: list[Path], processes: Processes) -> SpectralBasis:
        config = readout_config(self.model, self.adapter_name)
        accumulator = BasisAccumulator(self.model, config.units)
        anatomy = find_tower(self.model)
        with processes.in_step():
            for path in raws:
                capture, _, labels = _read_raw(path, anatomy)
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
        anatomy = find_tower(self.model)
        device = anatomy.layers[0].output_projection.weight.device
        images = Subset(self.dataset, list(_images(manifest, index)))
        loader = DataLoader(
            images, self.batch_size, collate_fn=collate, num_workers=self.num_workers
        )
        for number, batch in enumerate(loader):
            pixels = batch["pixel_values"].to(device)
            if number == 0:
                capture, readout = checked_capture(self.model, anatomy, pixels)
            else:
                with torch.no_grad(), unadapted(self.model), tapped(anatomy) as tap:
                    readout = run_tower(self.model, pixels)
                    capture = tap.take()
            bar.update(len(pixels))
            yield capture, readout.float().cpu(), batch["labels"]

    def _bar(self, manifest: dict[str, Any], mine: Iterable[int], paths: list[Path]) -> tqdm:
        sizes = {index: len(_images(manifest, index)) for index in mine}
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
        ids = torch.tensor(_images(manifest, index), dtype=torch.int64)
        write_tensors(
            path, {"coordinates": stored, "readout": readout, "labels": labels, "ids": ids}
        )


def adapter_digest(state: ReadoutState) -> str:
    """The sha256 of all that makes coordinates what they are: units and directions."""
    digest = hashlib.sha256(repr((state.settings, state.counts)).encode())
    for tensor in (state.directions, state.shift, state.constant):
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def processor_digest(processor: Any) -> str:
    """The sha256 of an image processor's settings."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()


def data_digest(dataset: ProcessedImages) -> str:
    """The sha256 of a split's labels and images: their bytes, or name, size and time of each file.

    Files are not read: an edited one has another time.
    """
    digest = hashlib.sha256()
    for row in dataset.dataset:
        stored = row["image"] or {}
        digest.update(f"{row.get('label')}".encode())
        if stored.get("bytes") is not None:
            digest.update(hashlib.sha256(stored["bytes"]).digest())
        elif (path := stored.get("path")) and os.path.isfile(path):
            facts = os.stat(path)
            digest.update(f"{Path(path).name} {facts.st_size} {facts.st_mtime_ns}".encode())
        else:
            digest.update(f"{path}".encode())
    return digest.hexdigest()


_WORDS = {
    "model": "the weights of another model",
    "processor": "another image processor",
    "data": "other images or labels",
    "adapter": "another basis or other units",
    "fits_basis": "another way to get the basis",
}


def _begin_together(folder: Path, manifest: dict[str, Any], processes: Processes) -> None:
    """Begin once, where all processes see it and write the same."""
    processes.check_same(
        {
            "weights": manifest["model"]["digests"]["float32"][:12],
            "basis": f"{manifest['adapter']}"[:12],
            "image processor": manifest["processor"][:12],
            "images and labels": f"{manifest['data'][:12]} ({manifest['images']})",
            **{key: manifest[key] for key in ("fits_basis", "dtype", "shard_size", "batch_size")},
        },
        "give each the same model, adapter, images and options.",
    )
    with processes.in_step():
        if processes.rank == 0:
            _begin(folder, manifest)
            _sweep(folder)
    with processes.in_step():
        if not (folder / MANIFEST).is_file():
            raise ResiDualError(
                f"process 0 has written '{folder / MANIFEST}', which is not to be seen from here: "
                "name a directory that all processes share."
            )


def _begin(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or refuse one that says something else."""
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, {**manifest, "complete": False})
        return
    there = read_json(folder / MANIFEST)
    for key, value in manifest.items():
        if key == "adapter" and manifest["fits_basis"]:
            continue  # known only when the basis is
        if there.get(key) != value:
            what = _WORDS.get(key, f"{key} {there.get(key)}, not {value}")
            raise ResiDualError(
                f"'{folder}' holds coordinates with {what}: use what they were begun with, or name "
                "another directory."
            )


def _sweep(folder: Path) -> None:
    """Remove what a killed run was about to write."""
    for name in (MANIFEST, BASIS, "shard-", "raw-"):
        for left in folder.glob(f".{name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _images(manifest: dict[str, Any], index: int) -> range:
    """The rows of the data set that a shard holds."""
    size = manifest["shard_size"]
    return range(index * size, min((index + 1) * size, manifest["images"]))


def _paths(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    count = -(-manifest["images"] // manifest["shard_size"])
    return [folder / f"shard-{index:05d}.safetensors" for index in range(count)]


def _write_raw(
    path: Path, anatomy: TowerAnatomy, seen: list[tuple[Capture, Tensor, Tensor]]
) -> None:
    """What the units of a shard's images wrote, in the model's own dtype."""

    def joined(parts: list[Tensor | None]) -> Tensor:
        return torch.cat([part.cpu() for part in parts if part is not None])

    captures = [capture for capture, _, _ in seen]
    tensors = {
        "readout": torch.cat([readout for _, readout, _ in seen]),
        "labels": torch.cat([labels for _, _, labels in seen]),
        "embed": joined([capture.embed for capture in captures]),
        "stream": joined([capture.stream for capture in captures]),
    }
    for layer in range(len(anatomy.layers)):
        tensors[f"heads.{layer}"] = joined([capture.heads[layer] for capture in captures])
        tensors[f"mlps.{layer}"] = joined([capture.mlps[layer] for capture in captures])
    write_tensors(path, tensors)


def _read_raw(path: Path, anatomy: TowerAnatomy) -> tuple[Capture, Tensor, Tensor]:
    tensors, _ = read_tensors(path)
    device, layers = anatomy.layers[0].output_projection.weight.device, range(len(anatomy.layers))
    capture = Capture(
        heads=[tensors[f"heads.{layer}"] for layer in layers],
        mlps=[tensors[f"mlps.{layer}"] for layer in layers],
        layers=[None for _ in layers],
        embed=tensors["embed"],
        stream=tensors["stream"],
    )
    return capture.map(lambda t: t.to(device)), tensors["readout"], tensors["labels"]
