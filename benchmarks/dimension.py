"""Dimensions of the bundled model's units by layer, and what TwoNN costs.

    python benchmarks/dimension.py        # writes dimension.json beside itself; a few minutes

The table is over images of the bundled model's own world. `cost` is TwoNN of one head as a ViT-L's
would be, 50,000 images × 64 directions of random numbers whose spectrum decays, in a process of its
own; its memory is what the process came to hold at most beyond what it held with the images. `load`
is how many programs ran on the machine on average, this one among them; `cpu_seconds` are those of
all threads.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from residual_peft.analysis import collect_contributions, dimension_profile, two_nn
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import batches
from residual_peft.demo.tasks import world_images
from residual_peft.hub.files import write_json

POINTS, DIRECTIONS = 50_000, 64
COLUMNS = ("linear", "two_nn", "ratio", "first_share", "participation")


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def cost(block: int, threads: int) -> dict[str, Any]:
    """Seconds and megabytes of one TwoNN, from within a process of its own."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(POINTS, DIRECTIONS, generator=generator)
    points *= torch.arange(1, DIRECTIONS + 1) ** -0.7
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    found = two_nn(points, block=block)
    return {
        "block": block,
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "megabytes": round(peak() - before),
        "two_nn": round(found.dimension, 2),
    }


def table(images: int) -> tuple[list[dict[str, Any]], float]:
    """Means by layer, and the seconds that the dimensions took once the images were read."""
    clip = load_backbone()
    read = batches(world_images(images), clip.image_processor, batch_size=256)
    seen = collect_contributions(clip.model, read, ("head", "mlp"))
    start = time.perf_counter()
    profile = dimension_profile(seen)
    seconds = time.perf_counter() - start
    rows = [asdict(row) for row in profile.by_layer()]
    for row in rows:
        row.update({name: round(row[name], 3) for name in COLUMNS})
    return rows, seconds


def main() -> None:
    """The cost for two sizes of block, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost", type=int, help="measure this size of block and nothing else")
    options = parser.parse_args()
    if options.cost:
        print(json.dumps(cost(options.cost, options.threads)))
        return
    torch.set_num_threads(options.threads)
    costs = []  # first: a process starts with the peak of the one that started it
    for block in (128, 512):
        command = [sys.executable, __file__, "--cost", str(block), "--threads"]
        run = subprocess.run([*command, str(options.threads)], capture_output=True, check=True)
        costs.append(json.loads(run.stdout))
    rows, seconds = table(options.images)
    results = {
        "machine": {
            "cores": os.cpu_count(),
            "threads": options.threads,
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        },
        "images": options.images,
        "share": 0.99,
        "layers": rows,
        "seconds_of_all_dimensions": round(seconds, 1),
        "cost": {"points": POINTS, "directions": DIRECTIONS, "by_block": costs},
    }
    write_json(Path(__file__).with_suffix(".json"), results)
    for row in rows:
        print(row["layer"], row["kind"], row["units"], *(row[name] for name in COLUMNS))
    print(costs, f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
