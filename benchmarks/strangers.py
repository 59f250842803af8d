"""What a stranger's folder gives: pictures of two Debian packages, in the folders they come in.

    python benchmarks/strangers.py          # needs apt-get and dpkg; minutes; writes strangers.json
    python benchmarks/strangers.py stamps   # only the folders whose names hold that

Each folder goes to `residual_peft.fit` with the bundled CLIP and nothing else said. Stamps lie
beside sounds, SVG and texts; clip art has names with spaces, palettes, transparency, copies of a
picture in several folders, and pictures of hundreds of millions of pixels.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from residual_peft import fit, load_data
from residual_peft.hub.files import write_json

RESULTS = Path(__file__).with_suffix(".json")
CACHE = Path(tempfile.gettempdir()) / "residual-peft-strangers"
SIX = ("animals", "food", "tools", "transportation", "plants", "science")
PACKAGES = {
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps",
    "openclipart-png": "usr/share/openclipart/png",
}


def unpacked(package: str) -> Path:
    """A package's pictures, fetched and unpacked once, without installing it."""
    root = CACHE / package
    if not root.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=CACHE, check=True)
        (file,) = CACHE.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", file, root], check=True)
    return root / PACKAGES[package]


def folders() -> dict[str, Path]:
    """Name -> folder of class folders."""
    clip_art = unpacked("openclipart-png")
    six = CACHE / "six"
    if not six.exists():
        for name in SIX:
            shutil.copytree(clip_art / name, six / name)  # links are followed
    return {
        "Tux Paint's stamps": unpacked("tuxpaint-stamps-default"),
        "clip art, six subjects": six,
        "clip art, all of it": clip_art,
    }


def fitted(folder: Path) -> dict[str, Any]:
    """One fit, as a stranger would make it."""
    started = time.perf_counter()
    made = fit(folder)
    seconds = time.perf_counter() - started
    summary = made.summary
    row = {one.name: one for one in summary.methods}
    chosen = next(one for one in summary.methods if one.chosen)
    return {
        "images": sum(summary.splits.values()),
        "test_images": summary.splits["test"],
        "classes": summary.classes,
        "skipped": len(summary.skipped),
        "left_out": list(load_data(folder, max_bad=1).left_out),
        "largest_class": round(summary.largest_class, 4),
        "zero_shot": round(row["zero-shot"].score, 4),
        "gains": round(row["gains"].score, 4),
        "probe": round(row["logistic-embedding"].score, 4),
        "chosen": chosen.name,
        "test": round(chosen.score, 4),
        "interval": [round(end, 4) for end in (chosen.low, chosen.high)],
        "seconds": round(seconds, 1),
        "findings": list(summary.findings),
    }


def main() -> None:
    """All folders."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if sys.argv[1:] else {}
    for name, folder in folders().items():
        if not all(word in name for word in sys.argv[1:]):
            continue
        found[name] = fitted(folder)
        write_json(RESULTS, found)
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
