"""One JSON line per finished run, appended whole and never changed."""

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...hub.files import disk_faults, parse_json, quoted, record_of

FILES = "results*.jsonl"
ZERO_SHOT, PROBE, LORA = "zero-shot", "logistic-embedding", "lora"
"""What every method is compared with, image by image."""
Key = tuple[str, str, str, str, int, str]


@dataclass(frozen=True)
class Result:
    """One method, fitted once."""

    model: str  # its name in the registry
    data: str  # likewise
    protocol: str  # likewise
    method: str  # likewise
    seed: int  # of the draw of the training images
    registry: str  # digest of the entries that the numbers depend on
    accuracy: float  # on the test images of the classes that were trained on, among those classes
    mean_per_class_recall: float  # of the same
    calibration_error: float  # expected, of the same
    trained: int  # numbers
    bytes: int  # what predicting needs beside model and texts, in float32
    encoding_seconds: float  # of the one pass over the images, training and test
    fitting_seconds: float  # choices included
    peak_memory: int  # of the process while it fitted, bytes; coordinates included
    images: dict[str, int]  # split -> how many; "train" those of the draw
    split: str  # digest of the data and their splits
    weights: str  # digest of the model's
    class_names: tuple[str, ...]  # of the data set
    templates: tuple[str, ...]  # of its texts
    basis: str  # what the bases are of
    right: str  # which test images were told right, a bit each, as hex
    novel_accuracy: float | None = None  # of classes that were not trained on, among themselves
    harmonic_mean: float | None = None  # of `accuracy` and that
    # other task -> zero-shot accuracy before and after, where the embedding changed
    forgotten: dict[str, tuple[float, float]] = field(default_factory=dict)
    # corruption and severity, or another data set -> accuracy on its test images
    shifted: dict[str, float] = field(default_factory=dict)
    # class and group of the test images that fare worst; None without groups
    worst_group: str | None = None
    worst_group_accuracy: float | None = None  # theirs
    # t -> what that share of the way to the fit comes to: accuracy here, and the mean zero-shot
    # accuracy on other tasks where there are any
    curve: dict[str, tuple[float, ...]] = field(default_factory=dict)
    mean_memory: int = 0  # as `peak_memory`, the mean over the time of the fit
    accelerator_memory: int = 0  # the most that tensors took there meanwhile, bytes
    notes: tuple[str, ...] = ()  # what to know of the fit
    versions: dict[str, str] = field(default_factory=dict)  # of packages
    machine: str = ""  # in words
    format_version: Literal[1] = 1

    @property
    def key(self) -> Key:
        """What run it is of."""
        return self.model, self.data, self.protocol, self.method, self.seed, self.registry

    @property
    def task(self) -> tuple[str, str, str]:
        """What methods and seeds are compared within: model, data set and protocol."""
        return self.model, self.data, self.protocol

    @property
    def made_of(self) -> tuple[str, str]:
        """Digests of the entries and of the images; only rows of the same can be compared."""
        return self.registry, self.split

    @property
    def hits(self) -> Tensor:
        """Which test images were told right, bool (M,)."""
        packed_bytes = bytes.fromhex(self.right + "0" * (len(self.right) % 2))
        bits = np.unpackbits(np.frombuffer(packed_bytes, np.uint8))[: self.images["test"]]
        return torch.from_numpy(bits.astype(bool))


def packed(hits: Tensor) -> str:
    """Bools (M,) as hex, four images a digit."""
    return np.packbits(hits.numpy()).tobytes().hex()[: -(-len(hits) // 4)]


def read_results(folder: Path) -> list[Result]:
    """All finished runs of a folder, the last line of each; half a line at the end is none.

    Raises:
        ResiDualError: a whole line that is no result; names file and line.
    """
    found: dict[Key, Result] = {}
    for path in sorted(folder.glob(FILES)):
        with disk_faults(path):
            content = path.read_bytes()
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            what = f"{quoted(path)}, line {number}"
            result = record_of(parse_json(line, what), Result, what, unknown="ignore")
            found.pop(result.key, None)  # what was run again is as late as it was
            found[result.key] = result
    return list(found.values())


def drop_half_line(path: Path) -> bool:
    """Cut what a killed run left of its last line; whether there was any."""
    if not path.exists():
        return False
    with disk_faults(path), path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
    return whole < len(content)


def append(path: Path, result: Result) -> None:
    """Add a line in one write, and wait until it is on the disk.

    Raises:
        ResiDualError: the disk does not take it.
    """
    line = (json.dumps(asdict(result)) + "\n").encode()
    with disk_faults(path), path.open("ab", buffering=0) as file:
        number, before = file.fileno(), os.fstat(file.fileno()).st_size
        try:
            if os.write(number, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(number)
        except OSError:
            file.truncate(before)  # so that the next line is whole
            raise


def latest(results: Iterable[Result]) -> list[Result]:
    """The rows of each task (model, data set, protocol) that can be compared with its last one.

    Where an entry of the registry or the data changed in between, those of before are left out: one
    table of both would compare methods on different images.
    """
    found = list(results)
    last = {result.task: result.made_of for result in found}
    return [result for result in found if result.made_of == last[result.task]]
