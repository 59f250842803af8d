"""The folder of a base model, looked at before transformers is let in.

Such a folder may come from anybody. Nothing of it is run as code, a pipe or device is never opened,
and the numbers in its config are believed once its weights have been looked at: what is built takes
at most two times the numbers that lie in the weights' files, and 1 GiB besides.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from transformers import AutoTokenizer

# transformers' top level wants torchvision for it until 5.20; the PIL processors do not need it
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..errors import ResiDualError, first_line, short
from .files import Within, file_size, is_folder, quoted, read_header, read_object, record_of

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MAX_CONFIG = 2**20
"""Bytes of a config, which may list 22,000 class names."""
MAX_VOCABULARY = 2**27
"""Bytes of a file of a tokenizer."""
_SLACK = 2**28
"""Numbers that a model may have beyond those in its files: 1 GiB in float32."""
_LARGEST = 2**20
"""What a number in a config may be where no tensor is as large; classes and bases of rotations."""
_MAX_SIDE = 4096
"""Pixels each way that a processor may make of an image: 200 MB in float32."""
_READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja")
_REPEATED = re.compile(r"layers|depth|blocks|stages")


def load_model(kind: Any, directory: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Let transformers load a model from a folder that `check_model` has no fault with.

    Gives the names of weights that the folder lacks, too.

    Raises:
        ResiDualError: as `check_model`, or the model does not load; says why.
    """
    check_model(directory, kind)
    with _foreign():
        model, loaded = kind.from_pretrained(
            directory,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
        )
    return model, sorted(loaded["missing_keys"])


def load_tokenizer(directory: Path) -> Any:
    """Let transformers load a tokenizer; no code of the folder is run.

    Raises:
        ResiDualError: there is none that loads; says why.
    """
    _check_files(directory)
    with _foreign():
        tokenizer = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        tokenizer(["a"], padding=True, truncation=True, return_tensors="pt")  # or say so now
    return tokenizer


def check_model(directory: Path, kind: Any) -> None:
    """Refuse a folder whose config asks for more than its weights are.

    Raises:
        ResiDualError: names the file and what is wrong with it.
    """
    _check_files(directory)
    if (directory / ADAPTER_CONFIG).exists():
        raise ResiDualError(
            f"wanted a model in {quoted(directory)}, got one with an adapter ({ADAPTER_CONFIG}), "
            "which transformers would load along: keep the adapter in a folder of its own."
        )
    config = read_object(directory / CONFIG, max_bytes=MAX_CONFIG)
    tensors, numbers, largest = _weights(directory)
    # by other numbers a config or a model would be built for ever
    for name, value in _numbers(config):
        most = tensors if _REPEATED.search(name) else max(largest, _LARGEST)
        if value > most:
            raise ResiDualError(
                f"{quoted(directory / CONFIG)}, field {short(name)[1:-1]}: wanted at most "
                f"{most:,}, as the weights beside it are {tensors:,} tensors of up to "
                f"{largest:,} each way, got {value:,}."
            )
    with _foreign(), torch.device("meta"):  # which takes no memory
        shell = kind(kind.config_class.from_pretrained(directory, local_files_only=True))
    wanted = sum(part.numel() for part in (*shell.parameters(), *shell.buffers()))
    if wanted > 2 * numbers + _SLACK:
        raise ResiDualError(
            f"{quoted(directory / CONFIG)} asks for a model of {wanted:,} numbers, and the weights "
            f"beside it hold {numbers:,}: they do not belong together. Download them again."
        )


def load_processor(directory: Path) -> Any:
    """Let transformers load an image processor, the PIL one; no code of the folder is run.

    Raises:
        ResiDualError: there is none that loads, or its images would be larger than any tower's;
            says why.
    """
    _check_files(directory)
    for path in sorted(directory.glob("*processor_config.json")):
        whole = read_object(path, max_bytes=MAX_CONFIG)
        kind: Any = _Processors if "image_processor" in whole else _Processor
        record_of(whole, kind, quoted(path), unknown="ignore")
    with _foreign():
        processor = AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False, local_files_only=True
        )
        made = processor(images=[Image.new("RGB", (16, 16))], return_tensors="pt")
    if not bool(made["pixel_values"].isfinite().all()):
        raise ResiDualError("it makes NaN or infinite pixels")
    return processor


_Side = Annotated[int, Within(1, _MAX_SIDE)]
_Size = _Side | tuple[_Side, ...] | dict[str, _Side | None] | None
_Channels = tuple[float, ...] | float | None


@dataclass(frozen=True)
class _Processor:
    """What of an image processor's config becomes sizes and arithmetic."""

    size: _Size = None
    crop_size: _Size = None
    pad_size: _Size = None
    patch_size: _Size = None
    max_num_patches: Annotated[int, Within(1, _MAX_SIDE)] | None = None
    image_mean: _Channels = None
    image_std: _Channels = None
    rescale_factor: float | None = None
    resample: Annotated[int, Within(0, 5)] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_convert_rgb: bool | None = None
    image_processor_type: str | None = None
    feature_extractor_type: str | None = None

    def __post_init__(self) -> None:
        deviations = self.image_std if isinstance(self.image_std, tuple) else (self.image_std,)
        if 0.0 in deviations:
            raise ResiDualError("wanted image_std other than 0, by which pixels are divided.")


@dataclass(frozen=True)
class _Processors:
    """A processor_config.json, with those of several kinds of input."""

    image_processor: _Processor


def _check_files(directory: Path) -> None:
    """Refuse a folder with something else than plain files of a bounded size where transformers
    reads."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        path = Path(entry.path)
        if path.suffix not in _READ or is_folder(path):
            continue
        size = file_size(path)
        if path.suffix not in (".safetensors", ".bin") and size > MAX_VOCABULARY:
            raise ResiDualError(
                f"wanted {quoted(path)} of at most {MAX_VOCABULARY:,} bytes, got one of {size:,}; "
                "no tokenizer or config is as large."
            )


def _weights(directory: Path) -> tuple[int, int, int]:
    """How many tensors and numbers lie in the files of a model, and the largest dimension."""
    tensors = numbers = largest = 0
    for path in directory.glob("*.safetensors"):
        for facts in read_header(path).values():
            tensors, numbers = tensors + 1, numbers + facts.count
            largest = max(largest, *facts.shape, 0)
    if tensors:
        return tensors, numbers, largest
    # PyTorch's own format says no shapes without unpickling: a number takes a byte or more
    numbers = sum(file_size(path) for path in directory.glob("*.bin"))
    return min(numbers // 64, 10_000), numbers, min(numbers, _LARGEST)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers anywhere in a config, with the name of their field."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


@contextmanager
def _foreign() -> Iterator[None]:
    """What another library makes of a stranger's file, of whatever kind, becomes one line.

    Rust's panics, which tokenizers may end in, are no `Exception`.
    """
    try:
        yield
    except (ResiDualError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ResiDualError(first_line(error)) from error
