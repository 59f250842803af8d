"""Safetensors files, looked at before they are believed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import ResiDualError, short
from ..places import PathLike, disk_fault, disk_faults
from .looking import file_size, quoted
from .parsing import parse_json
from .records import Within, record_of
from .writing import atomic_file

MAX_HEADER = 16 * 2**20
"""Bytes of a header: names, types and shapes of some 100,000 tensors."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_READ = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16}
_BITS |= {"I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64}


@dataclass(frozen=True)
class TensorFacts:
    """What a header says of a tensor, and the file's size confirms."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether they are floats that torch calculates with."""
        return self.dtype in ("F64", "F32", "F16", "BF16")

    @property
    def count(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Entry:
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[Annotated[int, Within(0, 2**40)], ...]
    data_offsets: tuple[int, int]


def read_header(path: PathLike) -> dict[str, TensorFacts]:
    """Names, types and shapes of a safetensors file's tensors; reads its header alone.

    All of them lie within the file, so that whoever makes room for them takes no more than its
    size.

    Raises:
        ResiDualError: the file is missing, no regular file, cut short or not safetensors.
    """
    size = file_size(path)
    with disk_faults(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise _not_whole(path, f"a header of {length:,} bytes in {size:,}")
        content = file.read(length)
    try:
        found = parse_json(content, "its header")
        if not isinstance(found, dict):
            raise ResiDualError("its header has no names")
        found.pop("__metadata__", None)
        entries = {name: record_of(value, _Entry, short(name)) for name, value in found.items()}
    except ResiDualError as error:
        raise _not_whole(path, error) from None
    known = {name: TensorFacts(entry.dtype, entry.shape) for name, entry in entries.items()}
    for name, facts in known.items():
        start, end = entries[name].data_offsets
        wanted = facts.count * _BITS.get(facts.dtype, 0) // 8
        if facts.dtype not in _BITS or wanted != end - start or not 0 <= start <= size - 8 - length:
            raise _not_whole(path, f"{short(name)} is {short(facts)} in bytes {start} to {end}")
    return known


def read_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, mapped into memory, and its metadata.

    Raises:
        ResiDualError: the file is missing, no regular file, cut short or not safetensors, or some
            of its tensors are of a type that nothing here calculates with, such as floats of 8
            bits or complex numbers.
    """
    for name, facts in read_header(path).items():
        if facts.dtype not in _READ:
            raise ResiDualError(
                f"wanted {short(name)} in {quoted(path)} as floats of 16 bits or more, whole "
                f"numbers or truth values, got {facts.dtype}: save or download it again."
            )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise (disk_fault(error, path) or _not_whole(path, error)) from error


def tensor_of(
    tensors: Mapping[str, Tensor],
    name: str,
    path: PathLike,
    *shape: int | None,
    whole: bool = False,
) -> Tensor:
    """One of a file's tensors, of the shape (None for any size) and kind that is wanted.

    Raises:
        ResiDualError: there is none, it is of another shape or kind, or some of it is NaN or
            infinite, for which all of it is read.
    """
    if name not in tensors:
        raise ResiDualError(
            f"{quoted(path)} has no tensor {name}; it is of another kind: save or download it "
            "again."
        )
    tensor = tensors[name]
    fits = len(shape) == tensor.ndim and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    numbers = tensor.dtype in _WHOLE if whole else tensor.dtype in _FLOATS
    if not fits or not numbers:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ResiDualError(
            f"wanted {name} in {quoted(path)} as {'whole numbers' if whole else 'floats'} of shape "
            f"({sizes}), got {tensor.dtype} of shape {tuple(tensor.shape)}: its files may not "
            "belong together; save or download them again."
        )
    if not whole and not bool(tensor.isfinite().all()):
        raise ResiDualError(
            f"{name} in {quoted(path)} holds NaN or infinite values; save or download it again."
        )
    return tensor


def write_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        ResiDualError: the disk does not take them; says why and what to do.
    """
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            dict(metadata or {}),
        )


def _not_whole(path: PathLike, why: object) -> ResiDualError:
    return ResiDualError(
        f"{quoted(path)} is not a whole safetensors file ({why}); it may have been cut short or be "
        "of another kind: copy or download it again."
    )
