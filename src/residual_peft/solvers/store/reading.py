"""A finished store, its shards mapped into memory; several as one, each image where it lies."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...bases.fingerprint import Fingerprint
from ...errors import ResiDualError
from ...hub.files import parse_json, path_of, quoted, read_header, read_tensors
from ...tuner import ReadoutState, readout_state
from ..coordinates import Coordinates
from .layout import SKIPPED, adapter_digest, read_manifest, rows_of_shard, shard_paths


class InParts:
    """Coordinates of one adapter that lie in parts, for the solvers as `Coordinates` are."""

    state: Any  # `ReadoutState`
    parts: Any  # one `Coordinates` for each, read from disk when they are touched

    @cached_property
    def labels(self) -> Tensor:
        """(N,), or with several labels per image zeros and ones (N, C)."""
        return torch.cat([part.labels for part in self.parts])

    @cached_property
    def readout(self) -> Tensor:
        """y (N, d) of the unadapted model, in memory."""
        return torch.cat([part.readout for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mean_length(self) -> float:
        """Mean ‖y‖ of the readouts."""
        lengths = sum(float(part.readout.double().norm(dim=1).sum()) for part in self.parts)
        return lengths / len(self)

    def rows(self, index: Tensor) -> Coordinates:
        """Those of some of the images, in memory, float32."""
        index = index.cpu()
        # labels travel along; everything else is read where it lies
        width, count = self.parts[0].readout.shape[1], self.parts[0].coordinates.shape[1]
        readout = torch.empty(len(index), width, dtype=self.parts[0].readout.dtype)
        coordinates = torch.empty(len(index), count, dtype=readout.dtype)
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        places = torch.bucketize(index, ends, right=True)
        for place in places.unique().tolist():
            here = (places == place).nonzero().flatten()
            part = self.parts[place]
            inside = index[here] - (int(ends[place]) - len(part))
            readout[here] = part.readout[inside]
            coordinates[here] = part.coordinates[inside].to(readout.dtype)
        return Coordinates(readout, self.labels[index], coordinates, self.state)

    def load(self) -> Coordinates:
        """All of it in memory, float32: `coordinate_bytes` says how much that takes."""
        return self.rows(torch.arange(len(self)))


@dataclass(frozen=True)
class CoordinateStore(InParts):
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
        cls, directory: str | os.PathLike[str], model: nn.Module, adapter_name: str | None = None
    ) -> "CoordinateStore":
        """Open a finished store for the adapter that it was written with.

        Raises:
            ResiDualError: there is none, it is not finished, or it belongs to another model or
                adapter.
        """
        folder = path_of(directory)
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise ResiDualError(
                f"'{folder}' is not finished; call write_coordinates with the same arguments again."
            )
        Fingerprint(**manifest["model"]).check(model, quoted(folder))
        state = readout_state(model, adapter_name).map(Tensor.cpu)
        if adapter_digest(state) != manifest["adapter"]:
            raise ResiDualError(
                f"'{folder}' was written for an adapter with another basis or other units; load "
                "that one, or write the coordinates anew."
            )
        _check_shards(folder, manifest, state)
        return cls(folder, manifest, state)

    @cached_property
    def parts(self) -> tuple[Coordinates, ...]:
        """One `Coordinates` per shard; read from disk when they are touched."""
        return tuple(
            Coordinates(t["readout"], t["labels"], t["coordinates"], self.state)
            for t, _ in self._shards
        )

    @cached_property
    def skipped(self) -> tuple[tuple[int, str, str], ...]:
        """Row, file and reason of each image of the data set that could not be read."""
        paths = shard_paths(self.directory, self.manifest)
        return tuple(
            image
            for path, (_, metadata) in zip(paths, self._shards, strict=True)
            for image in skipped_images(path, metadata)
        )

    @cached_property
    def ids(self) -> Tensor:
        """The row of each image in the data set, (N,)."""
        return torch.cat([tensors["ids"] for tensors, _ in self._shards])

    @cached_property
    def _shards(self) -> list[tuple[dict[str, Tensor], dict[str, str]]]:
        return [read_tensors(path) for path in shard_paths(self.directory, self.manifest)]


@dataclass(frozen=True)
class Stores(InParts):
    """Stores of one adapter's coordinates, for the solvers as one store is."""

    # of splits of the same data, such as training and validation images
    stores: tuple[CoordinateStore, ...]

    def __post_init__(self) -> None:
        adapters = {store.manifest["adapter"] for store in self.stores}
        if len(adapters) != 1:
            raise ResiDualError(
                f"wanted stores of one adapter's coordinates, got those of {len(adapters)}."
            )

    @property
    def state(self) -> ReadoutState:
        """Of the adapter."""
        return self.stores[0].state

    @cached_property
    def parts(self) -> tuple[Coordinates, ...]:
        """One `Coordinates` per shard; read from disk when they are touched."""
        return tuple(part for store in self.stores for part in store.parts)

    @property
    def coordinate_bytes(self) -> int:
        """Of all coordinates in float32."""
        return len(self) * len(self.state.shift) * 4


def skipped_images(path: Path, metadata: dict[str, str]) -> list[tuple[int, str, str]]:
    """Which images a shard says it does not hold."""
    found = parse_json(metadata.get(SKIPPED, "[]").encode(), quoted(path))
    kinds = (int, str, str)
    if not isinstance(found, list) or not all(
        isinstance(item, list) and tuple(map(type, item)) == kinds for item in found
    ):
        raise ResiDualError(
            f"{quoted(path)} does not say which images it left out as a shard does: write the "
            "coordinates again."
        )
    return [(row, file, reason) for row, file, reason in found]


def _check_shards(folder: Path, manifest: dict[str, Any], state: ReadoutState) -> None:
    """Believe a manifest's numbers once files of those sizes are there; reads headers alone."""
    count = -(-manifest["images"] // manifest["shard_size"])
    if (there := sum(1 for _ in folder.glob("shard-*.safetensors"))) < count:
        raise ResiDualError(
            f"{quoted(folder)} wants {count:,} shards of coordinates and has {there:,}: write them "
            "again."
        )
    for index, path in enumerate(shard_paths(folder, manifest)):
        asked, found = len(rows_of_shard(manifest, index)), read_header(path)
        shapes = {name: facts.shape for name, facts in found.items()}
        rows = (*shapes.get("ids", ()), 0)[0]
        # what is not there is known by name
        missing = 0 if rows == asked else len(skipped_images(path, read_tensors(path)[1]))
        classes = shapes.get("labels", ())[1:2]  # with several labels per image
        wanted = {
            "coordinates": ((rows, len(state.shift)), True),
            "readout": ((rows, state.constant.shape[-1]), True),
            "ids": ((rows,), False),
            "labels": ((rows, *classes), False),
        }
        kept = {name: (shapes[name], found[name].is_float) for name in wanted if name in found}
        if kept != wanted or rows + missing != asked:
            raise ResiDualError(
                f"{quoted(path)} does not hold the {asked:,} images that its store says, for this "
                "adapter: write the coordinates again."
            )
