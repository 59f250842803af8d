"""How fast a machine reads images, and what memory a run took."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from peft import PeftModel
from PIL import Image

from ...classifiers.backbones import Backbone
from ...data import batches
from ...hub.machine import value_in
from ...solvers.coordinates import collect_coordinates

# Pillow: releases decode and enlarge alike, and shrink pictures differently (docs/log.md)
PACKAGES = (
    *("residual-peft", "torch", "transformers", "peft"),
    *("numpy", "scipy", "scikit-learn", "pillow"),
)
SECONDS = 1.0  # of reading that are measured at least
SIDE = 256  # pixels of the pictures that are read
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def on_accelerator(model: torch.nn.Module) -> Iterator[None]:
    """The model on this process's accelerator, where there is one, for as long as it reads."""
    if not torch.cuda.is_available():
        yield
        return
    model.to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
    try:
        yield
    finally:
        model.to("cpu")


def reading_rate(backbone: Backbone, model: PeftModel, batch_size: int) -> float:
    """Images per second: prepared, through the model, and to coordinates; decoding comes on top.

    `batch_size` images per pass on an accelerator; four on a processor, where more would only take
    longer.
    """
    count = batch_size if torch.cuda.is_available() else 4
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    values = {"image": [Image.fromarray(pixels)] * count, "label": [0] * count}
    images = Dataset.from_dict(values, features=features)
    one = batches(images, backbone.image_processor, batch_size=count, num_workers=0)
    read = 0
    with on_accelerator(model):
        collect_coordinates(model, one)  # the first takes longer
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < SECONDS:
            collect_coordinates(model, one)
            read += count
    return read / passed


@dataclass
class Memory:
    """What this process took while a block ran, in bytes; 0 where the system does not say."""

    peak: int = 0  # the most
    mean: int = 0  # over time, by a look every so often
    accelerator: int = 0  # the most that tensors took there


@contextmanager
def watched_memory(every: float = 0.05) -> Iterator[Memory]:
    """Watch it, from a thread of its own; the figures are there once the block ends."""
    found, over = Memory(), threading.Event()
    looks = [_status("VmRSS:")]

    def look() -> None:
        while not over.wait(every):
            looks.append(_status("VmRSS:"))

    # forget the peaks so far, where the system lets us
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        _RESET.write_text("5")
    before = _status("VmHWM:")
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        looks.append(_status("VmRSS:"))
        # the kernel's own peak may lag behind a look by some pages, or be of what ran before
        peak = _status("VmHWM:")
        found.peak = max(*looks, peak if peak > before else 0)
        found.mean = sum(looks) // len(looks)
        if torch.cuda.is_available():
            found.accelerator = torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    """A size that Linux tells of this process."""
    return int((value_in(_STATUS, name) or "0").split()[0]) * 1024
