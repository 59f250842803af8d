"""`residual-peft bench` with a real ViT-S/14, as `dinov2_small.py` converts it: `bench_vit.toml`.

    python benchmarks/dinov2_small.py && python benchmarks/bench_vit.py

Writes bench_vit.jsonl and .md beside itself, then bench_vit_backwards.jsonl and .md: what goes back
through the model, on pictures of 84 pixels. Pictures are those of `bench_small.py`, and Tux Paint's
stamps as `strangers.py` fetches them. The model knows no texts: classes are means of the training
images. As there, a killed run goes on, and what cannot be had is left out.
"""

import json
import shutil
import subprocess
from pathlib import Path

from bench_small import PLACE, pictures, run
from dinov2_small import PLACE as MODEL
from strangers import unpacked

REGISTRY = Path(__file__).with_suffix(".toml")
BACKWARDS = REGISTRY.with_stem("bench_vit_backwards")
SMALL = 84  # pixels, six patches
STAMPS = PLACE / "stamps"


def stamps() -> None:
    """Tux Paint's, once."""
    if STAMPS.exists():
        return
    try:
        STAMPS.symlink_to(unpacked("tuxpaint-stamps-default"))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"No stamps: {error}")


def models() -> None:
    """The model, and once more with a processor for small pictures."""
    shutil.copytree(MODEL, PLACE / MODEL.name, dirs_exist_ok=True)
    small = PLACE / f"{MODEL.name}-{SMALL}px"
    shutil.copytree(MODEL, small, dirs_exist_ok=True)
    processor = small / "preprocessor_config.json"
    asked = json.loads(processor.read_text())
    asked["size"] = {"shortest_edge": SMALL}
    asked["crop_size"] = {"height": SMALL, "width": SMALL}
    processor.write_text(json.dumps(asked, indent=2))


def main() -> None:
    """Make the pictures, and run the registries."""
    PLACE.mkdir(exist_ok=True)
    pictures()
    stamps()
    models()
    run(REGISTRY, "out-vit")
    run(BACKWARDS, "out-vit-backwards")


if __name__ == "__main__":
    main()
