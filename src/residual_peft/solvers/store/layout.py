"""What lies in a store, what it belongs to, and how one is begun."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from ...bases.fingerprint import Fingerprint
from ...bases.processes import Processes
from ...data import ProcessedImages
from ...errors import ResiDualError
from ...hub.files import Within, read_record, sweep, write_json
from ...tuner import ReadoutState


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds."""

    model: Fingerprint
    processor: str
    data: str
    adapter: str | None
    fits_basis: str | None
    images: Annotated[int, Within(1, 2**40)]
    dtype: Literal["float32", "float16", "bfloat16"]
    shard_size: Annotated[int, Within(1, 2**40)]
    batch_size: Annotated[int, Within(1, 2**40)]
    complete: bool
    format_version: Literal[1, 2] = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check what a store says of itself."""
    return asdict(read_record(folder / MANIFEST, Manifest, unknown="ignore"))


MANIFEST, BASIS = "manifest.json", "basis"
FORMAT = 2  # 1 had no images that were skipped, and large JPEGs decoded whole
SKIPPED = "skipped"  # in a shard's metadata: row, file and reason of each image that is not in it
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

    Of N images with K coordinates each, of `dtype`, and a readout of width d. Where an image may
    have several labels, they take a byte for each of C classes.

    >>> coordinate_bytes(1_000_000, 15_504, 512, torch.bfloat16) / 1e9  # ViT-B/16, heads and MLPs
    33.072
    """
    # the readout stays in float32: it is what every gain of 1 gives
    labels = 8 if classes is None else classes
    return images * (coordinates * dtype.itemsize + width * 4 + labels + 8)


def rows_of_shard(manifest: dict[str, Any], index: int) -> range:
    """The rows of the data set that a shard holds."""
    size = manifest["shard_size"]
    return range(index * size, min((index + 1) * size, manifest["images"]))


def shard_paths(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """Where each shard lies, or will."""
    count = -(-manifest["images"] // manifest["shard_size"])
    return [folder / f"shard-{index:05d}.safetensors" for index in range(count)]


def adapter_digest(state: ReadoutState) -> str:
    """The sha256 of all that makes coordinates what they are: units and directions."""
    digest = hashlib.sha256(f"({state.settings.digested}, {state.counts!r})".encode())
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
    "format_version": "pixels of an earlier version",
}


def begin_together(folder: Path, manifest: dict[str, Any], processes: Processes) -> None:
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
            sweep(folder)
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
    there = read_manifest(folder)
    for key, value in manifest.items():
        if key == "adapter" and manifest["fits_basis"]:
            continue  # known only when the basis is
        found = there.get(key)
        if key == "model":  # known by its weights, wherever it lies by now
            found, value = ({**part, "name": None} for part in (found or {}, value))
        if found != value:
            what = _WORDS.get(key, f"{key} {found}, not {value}")
            raise ResiDualError(
                f"'{folder}' holds coordinates with {what}: use what they were begun with, or name "
                "another directory."
            )
