"""`residual-peft bench` with a real ViT-S/14, as `dinov2_small.py` converts it: `bench_vit.toml`.

    python benchmarks/dinov2_small.py && python benchmarks/bench_vit.py

Writes bench_vit.jsonl and .md beside itself; the pictures are those of `bench_small.py`. The model
knows no texts: classes are means of the training images. As there, a killed run goes on.
"""

import shutil
from pathlib import Path

from bench_small import PLACE, pictures, run
from dinov2_small import PLACE as MODEL

REGISTRY = Path(__file__).with_suffix(".toml")


def main() -> None:
    """Make the pictures, and run the registry."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    shutil.copytree(MODEL, PLACE / MODEL.name, dirs_exist_ok=True)
    run(REGISTRY, "out-vit")


if __name__ == "__main__":
    main()
