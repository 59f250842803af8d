"""A saved adapter's weights, checked before the first part of a model is touched.

PEFT copies whatever an adapter's file holds into the model, and only warns of what is missing.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import Tensor

from ..errors import ResiDualError, short
from ..hub.files import (
    PathLike,
    TensorFacts,
    file_size,
    quoted,
    read_header,
    read_tensors,
)
from .gains import PREFIX

Shape = tuple[int, ...]

PEFT_PREFIX = "base_model.model."
LARGEST_GAIN = 1e9
"""In float32, what a larger gain leaves alone drowns in the rounding of what it scales; the square
of a readout that gains of this size have scaled is still finite there."""
LARGEST_VALUE = 1e15  # of means and variances, whose squares are finite, too
_FLOATS = {"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class SavedWeights:
    """The tensors of an adapter's file, or of a state dict in its place, by name."""

    what: str  # the words for them in messages
    facts: dict[str, TensorFacts]  # type and shape of each, as its file's header has them
    path: Path | None = None  # of a safetensors file whose values are read when they are needed
    held: Mapping[str, Tensor] | None = None  # the values where they are at hand already

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], what: str) -> "SavedWeights":
        """Those of a state dict."""
        facts = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise ResiDualError(f"{what} hold {short(tensor)} as {short(name)}: no tensor.")
            facts[name] = TensorFacts(str(tensor.dtype).split(".")[-1], tuple(tensor.shape))
        return cls(what, facts, held=tensors)

    @classmethod
    def in_directory(cls, directory: PathLike) -> "SavedWeights":
        """Those of an adapter's directory; of safetensors, only the header is read."""
        path = Path(directory) / SAFETENSORS_WEIGHTS_NAME
        pickled = Path(directory) / WEIGHTS_NAME
        if not path.is_file() and pickled.is_file():
            return cls.of(_unpickled(pickled), f"the weights in {quoted(pickled)}")
        if not path.exists():
            raise ResiDualError(
                f"wanted the adapter's weights in {quoted(path)}, which is missing: save or "
                "download the adapter again."
            )
        return cls(f"the weights in {quoted(path)}", read_header(path), path)

    def check(self, expected: Mapping[str, Shape], path: str | None = None) -> None:
        """Refuse all but exactly these tensors, of these shapes, with values that make sense.

        `expected` is name in the base model -> shape; `path` is of the one layer in readout mode,
        which other classes have elsewhere.
        """
        places = self._places(path)
        if foreign := [name for name, place in places.items() if place not in expected]:
            raise ResiDualError(
                f"{self.what} hold {short(foreign[0])}, which is no part of this adapter and would "
                "change the model itself or another adapter: the file was changed, or is of "
                "another kind. Save or download it again."
            )
        if missing := [place for place in expected if place not in places.values()]:
            raise ResiDualError(
                f"{self.what} lack {', '.join(map(_last, missing))}: the file was changed, belongs "
                "to another adapter, or was written before heads were stored in head space. Save "
                "or download it again."
            )
        for name, place in places.items():
            facts, last = self.facts[name], _last(place)
            if facts.shape != expected[place]:
                raise ResiDualError(
                    f"{self.what} have {last} of shape {facts.shape}, and the adapter in the model "
                    f"has {expected[place]}: its basis is another one. Load them with "
                    "PeftModel.from_pretrained on the bare model (is_trainable=True to train on), "
                    "or fit the same basis first."
                )
            if facts.dtype not in _FLOATS:
                raise ResiDualError(
                    f"{self.what} have {last} of type {facts.dtype}; wanted floating point "
                    "numbers: save or download the adapter again."
                )
        for place, tensor in self.values(path).items():
            check_values(tensor, _last(place), self.what)

    def values(self, path: str | None = None) -> dict[str, Tensor]:
        """The tensors by their names in the base model; `path` as for `check`."""
        held: Mapping[str, Tensor] | None = self.held
        if held is None:
            assert self.path is not None
            held, _ = read_tensors(self.path)
        return {place: held[name] for name, place in self._places(path).items()}

    def _places(self, path: str | None) -> dict[str, str]:
        """Name in the file -> name in the base model."""
        places, owners = {}, set()
        for name in self.facts:
            place = name.removeprefix(PEFT_PREFIX)
            owner, dot, rest = place.rpartition(f".{PREFIX}")
            if path is not None and dot:
                owners.add(owner)
                place = f"{path}{dot}{rest}"
            places[name] = place
        if len(owners) > 1 or len(set(places.values())) < len(places):
            raise ResiDualError(
                f"{self.what} are those of several layers, and this adapter has one: the file was "
                "changed, or belongs to another adapter. Save or download it again."
            )
        return places


def _last(name: str) -> str:
    """The part of a name that says what a tensor is, without an adapter's name behind it."""
    return short(name.rpartition(f".{PREFIX}")[1][1:] + name.rpartition(f".{PREFIX}")[2])[1:-1]


def check_values(tensor: Tensor, name: str, what: str) -> None:
    """Refuse values that no training leaves: NaN, infinite, or beyond what float32 tells apart."""
    if tensor.is_meta or not tensor.numel():
        return
    if not bool(tensor.isfinite().all()):
        raise ResiDualError(f"{what} hold NaN or infinite values in {name}: save it again.")
    name, least, most = name.removeprefix(PREFIX), -LARGEST_VALUE, LARGEST_VALUE
    if name == "gains":
        least, most = -LARGEST_GAIN, LARGEST_GAIN
    elif name in ("components", "head_components", "directions"):
        least, most = -1.1, 1.1  # rows of unit length, in half precision at worst
    elif name in ("eigenvalues", "total_variance"):
        least = -1e-3 * float(tensor.abs().max())  # zeros, as they were rounded
    found = float(tensor.min()), float(tensor.max())
    if found[0] < least or found[1] > most:
        raise ResiDualError(
            f"{what} hold {name} from {found[0]:.3g} to {found[1]:.3g}; wanted {least:.3g} to "
            f"{most:.3g}: they diverged in training, or the file was changed. Fit or download the "
            "adapter again."
        )


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of what `save_pretrained(safe_serialization=False)` wrote."""
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as file:
            inside = sum(entry.file_size for entry in file.infolist())
        if inside > size:
            raise ValueError(f"{inside:,} bytes are packed into {size:,}")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise ValueError("it holds no tensors by name")
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, RuntimeError, EOFError) as why:
        raise ResiDualError(
            f"{quoted(path)} is not a whole file of weights ({short(str(why))}): save or download "
            "the adapter again, as safetensors."
        ) from None
    return found
