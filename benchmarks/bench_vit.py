"""`residual-peft bench` with a real ViT-S/14, as `dinov2_small.py` converts it: `bench_vit.toml`.

    python benchmarks/dinov2_small.py && python benchmarks/bench_vit.py

Writes bench_vit.jsonl and .md beside itself; the pictures are those of `bench_small.py`. The model
knows no texts: classes are means of the training images. As there, a killed run goes on.
"""

import os
import shutil
from pathlib import Path

from bench_small import PLACE, pictures
from dinov2_small import PLACE as MODEL

from residual_peft.app.benching import registry_of, run_bench

REGISTRY = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Make the pictures, run the registry, and keep what came of it."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    shutil.copytree(MODEL, PLACE / MODEL.name, dirs_exist_ok=True)
    os.chdir(PLACE)
    run_bench(registry_of(REGISTRY), PLACE / "out-vit", resume=True)
    shutil.copy(PLACE / "out-vit" / "results.jsonl", REGISTRY.with_suffix(".jsonl"))
    shutil.copy(PLACE / "out-vit" / "summary.md", REGISTRY.with_suffix(".md"))


if __name__ == "__main__":
    main()
