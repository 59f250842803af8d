"""A basis as two files, and its card."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from ..errors import ResiDualError
from ..hub.cards import basis_card
from ..hub.directories import known_name
from ..hub.files import (
    PathLike,
    Within,
    atomic_directory,
    quoted,
    read_record,
    read_tensors,
    tensor_of,
    write_json,
    write_tensors,
)
from ..towers.units import Unit
from .fingerprint import Fingerprint

if TYPE_CHECKING:
    from .basis import SpectralBasis

TENSORS_FILE = "residual_basis.safetensors"
METADATA_FILE = "residual_basis.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Stored:
    """What `residual_basis.json` holds."""

    source: Literal["data", "weights"]
    num_samples: Annotated[int, Within(1)] | None
    fingerprint: Fingerprint
    units: tuple[str, ...]
    component_counts: tuple[Annotated[int, Within(0, 2**31)], ...]
    format_version: int = FORMAT_VERSION


def write_basis(basis: "SpectralBasis", directory: PathLike, dtype: torch.dtype) -> None:
    """Write a basis whole or not at all; arguments are those of `save_pretrained`."""
    with atomic_directory(directory) as folder:
        tensors = {
            "means": basis.means,
            "components": torch.cat(basis.components),
            "eigenvalues": torch.cat(basis.eigenvalues),
            "total_variance": basis.total_variance,
        }
        # shares of variance are told from few numbers, which half precision would not tell
        wide = torch.promote_types(dtype, torch.float32)
        kinds = {"eigenvalues": wide, "total_variance": wide}
        tensors = {name: tensor.to(kinds.get(name, dtype)) for name, tensor in tensors.items()}
        write_tensors(folder / TENSORS_FILE, tensors, {"format": "pt"})
        units, counts = tuple(map(str, basis.units)), tuple(basis.component_counts)
        source: Any = basis.source
        stored = _Stored(source, basis.num_samples, basis.fingerprint, units, counts)
        write_json(folder / METADATA_FILE, asdict(stored))


def read_basis(folder: Path) -> dict[str, Any]:
    """What `write_basis` wrote, as the constructor of `SpectralBasis` takes it."""
    stored = read_record(folder / METADATA_FILE, _Stored, unknown="ignore")
    if stored.format_version > FORMAT_VERSION:
        raise ResiDualError(
            f"{quoted(folder)} was written by a newer residual-peft (format "
            f"{stored.format_version}, this one reads {FORMAT_VERSION}); update the package."
        )
    path = folder / TENSORS_FILE
    tensors, _ = read_tensors(path)
    units, counts = tuple(map(Unit.parse, stored.units)), stored.component_counts
    if not units or len(set(units)) != len(units) or len(counts) != len(units):
        raise ResiDualError(
            f"{quoted(folder)} holds no whole basis: {len(units)} units, "
            f"{len(set(units))} of them different, and {len(counts)} counts of components. "
            "Save or download it again."
        )
    # counts and width are believed once tensors of those sizes lie in the file
    width, total = stored.fingerprint.width, sum(counts)
    found = {
        "means": tensor_of(tensors, "means", path, len(units), width),
        "components": tensor_of(tensors, "components", path, total, width),
        "eigenvalues": tensor_of(tensors, "eigenvalues", path, total),
        "total_variance": tensor_of(tensors, "total_variance", path, len(units)),
    }
    for name in ("eigenvalues", "total_variance"):
        if bool((found[name] < 0).any()):
            raise ResiDualError(
                f"{name} in {quoted(path)} are variances, and some are below 0; save or "
                "download the basis again."
            )
    return {
        **found,
        "units": units,
        "components": list(found["components"].split(list(counts))),
        "eigenvalues": list(found["eigenvalues"].split(list(counts))),
        "num_samples": stored.num_samples,
        "source": stored.source,
        "fingerprint": stored.fingerprint,
    }


def card_of(basis: "SpectralBasis", location: str) -> str:
    """The model card of a basis that is loaded from some Hub id."""
    kinds = [unit.kind for unit in basis.units]
    images = "the weights alone" if basis.num_samples is None else f"{basis.num_samples:,} images"
    return basis_card(
        location=location,
        model=known_name(basis.fingerprint.name),
        units={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        components=sum(basis.component_counts),
        basis=images,
    )
