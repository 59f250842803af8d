"""A class head from coordinates on disk: memory, time and accuracy, from sums and in memory.

    python benchmarks/large_heads.py        # writes large_heads.json beside itself; some minutes

A store of 20,000 images with 3,072 random coordinates each, of which a direction per class says a
little; the model is a random CLIP, whose images are never read. Either way runs in a process of its
own, and its peak is what the system says of it, less what it held before the fit.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from residual_peft import ResiDualConfig, ZeroShotClassifier
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.hub.files import write_json, write_tensors
from residual_peft.solvers import large
from residual_peft.solvers.methods import METHODS
from residual_peft.solvers.store import CoordinateStore, Stores, adapter_digest
from residual_peft.tuner import fit_bases, readout_state

IMAGES, CLASSES, SHARD, TEST = 20_000, 50, 2_000, 2_000
LAYERS, HEADS, WIDTH = 12, 8, 256  # 12 * 8 heads of 32 dimensions: 3,072 coordinates and a few
OUT = Path(__file__).with_suffix(".json")


def classifier_of() -> ZeroShotClassifier:
    """A random CLIP with an adapter on its heads, the same in every process."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    vision = CLIPVisionConfig(**sizes, intermediate_size=64, image_size=16, patch_size=8)
    text = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH
    )
    model = get_peft_model(
        CLIPModel(config).eval(), ResiDualConfig(units="head", components=WIDTH // HEADS)
    )
    fit_bases(model, [torch.randn(200, 3, 16, 16)])
    names = [f"class {number}" for number in range(CLASSES)]
    return ZeroShotClassifier(model.eval(), names, torch.randn(CLASSES, WIDTH), logit_scale=10.0)


def write(folder: Path, classifier: ZeroShotClassifier, count: int, seed: int) -> None:
    """A store of random coordinates, in shards as `write_coordinates` leaves them."""
    state = readout_state(classifier.model)
    columns = len(state.shift)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(CLASSES, columns, generator=generator)
    generator.manual_seed(seed)
    folder.mkdir(parents=True)
    for shard in range(-(-count // SHARD)):
        rows = torch.arange(shard * SHARD, min((shard + 1) * SHARD, count))
        labels = rows % CLASSES
        noise = torch.randn(len(rows), columns, generator=generator)
        found = {
            "coordinates": noise + 0.06 * direction[labels],
            "readout": torch.randn(len(rows), WIDTH, generator=generator),
            "labels": labels,
            "ids": rows,
        }
        write_tensors(folder / f"shard-{shard:05d}.safetensors", found)
    manifest = {
        "format_version": 2,
        "model": Fingerprint.of(classifier.model).to_dict(),
        "processor": "",
        "data": "",
        "adapter": adapter_digest(state),
        "fits_basis": None,
        "images": count,
        "dtype": "float32",
        "shard_size": SHARD,
        "batch_size": 64,
        "complete": True,
    }
    write_json(folder / "manifest.json", manifest)


def peak() -> float:
    """MB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit(root: Path, way: str) -> dict[str, float]:
    """One way, in this process."""
    classifier = classifier_of()
    seen = Stores((CoordinateStore.open(root / "train", classifier.model),))
    test = CoordinateStore.open(root / "test", classifier.model).load()
    before, started = peak(), time.perf_counter()
    if way == "in memory":
        outcome = METHODS["ridge"].run(large.draw_of(classifier, seen, len(seen)))
    else:
        drawn = large.draw_of(classifier, seen, 2000)
        outcome = METHODS["ridge"].run(drawn)
        if way == "from sums":
            outcome = large.fit_all(outcome, drawn, seen, in_memory=2**27)
    seconds = time.perf_counter() - started
    right = outcome.logits(classifier, test).argmax(1) == test.labels
    return {
        "peak MB above the model's": round(peak() - before, 1),
        "seconds": round(seconds, 1),
        "test accuracy": round(float(right.double().mean()), 4),
        "left-out accuracy": round(outcome.left_out.accuracy, 4),
        "strength": outcome.strength or 0.0,
    }


def main() -> None:
    """Write the stores, run each way, write what it said."""
    torch.set_num_threads(2)
    if len(sys.argv) == 3:
        print(json.dumps(fit(Path(sys.argv[1]), sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as place:
        root, classifier = Path(place), classifier_of()
        write(root / "train", classifier, IMAGES, 2)
        write(root / "test", classifier, TEST, 3)
        columns = len(readout_state(classifier.model).shift)
        found = {}
        for way in ("draw alone", "from sums", "in memory"):
            command = [sys.executable, __file__, place, way]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[way] = json.loads(said.splitlines()[-1])
            print(way, found[way], flush=True)
    result = {
        "images": IMAGES,
        "coordinates": columns,
        "classes": CLASSES,
        "MB of coordinates": round(IMAGES * columns * 4 / 1e6, 1),
        "ways": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
    }
    write_json(OUT, result)


if __name__ == "__main__":
    main()
