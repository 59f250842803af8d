"""A whole fit at real size, and what a pass over images keeps in memory.

    python benchmarks/real_size.py                         # hours on two cores
    python benchmarks/real_size.py --images 60 --size 1600x1200 --memory 128 256   # minutes

Writes `real_size.json` beside itself. Two parts, each in processes of its own:

- `fit`: 2,000 JPEG files of 4000 x 3000 (drawn once, into `--cache`), a CLIP of ViT-B/16's size
  with random weights (time does not depend on their values), `residual-peft fit` from the command
  line to its report: images per second of every stage, peak memory of all its processes, seconds
  to the first line and to the first image, beside the rate of the model's own forward on tensors.
- `memory`: bytes by which the peak of a process grows per image from 200 images to 1,000, beside
  the bytes that the pass has to keep, for each kind of pass.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as Pillow
from torch import Tensor

from residual_peft import (
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    collect_with_basis,
    write_coordinates,
)
from residual_peft.analysis import collect_contributions
from residual_peft.classifiers.class_means import class_means
from residual_peft.classifiers.evaluation import evaluate
from residual_peft.data import ProcessedImages
from residual_peft.data.images import to_rgb
from residual_peft.hub.files import write_json
from residual_peft.towers.running import run_tower

OUT = Path(__file__).with_suffix(".json")
CLASSES = ("dunes", "forest", "harbour", "market", "meadow")
DISTINCT = 100  # photos that are drawn; the others differ by a comment
BATCH = 64
Row = dict[str, Any]


# --- photos and a model, drawn once


def photo(width: int, height: int, seed: int) -> bytes:
    """A JPEG with detail of all sizes, as large as a camera's: some 2 to 3 MB at 12 megapixels."""
    rng = np.random.default_rng(seed)
    hue = np.array([(180, 150, 90), (50, 110, 50), (60, 100, 160), (170, 90, 80), (120, 170, 70)])
    whole = np.zeros((height, width, 3), np.float32) + hue[seed % len(CLASSES)]
    for step in (4, 16, 64, 256, 1024):
        shape = (max(2, height // step), max(2, width // step), 3)
        layer = Pillow.fromarray(rng.integers(0, 256, shape).astype(np.uint8))
        scaled = layer.resize((width, height), Pillow.Resampling.BILINEAR)
        whole += (np.asarray(scaled, np.float32) - 128) * (0.1 + step / 2500)
    stream = io.BytesIO()
    pixels = whole.clip(0, 255).astype(np.uint8)
    Pillow.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def photos(folder: Path, count: int, width: int, height: int) -> Path:
    """A folder of class folders; what is there already is taken."""
    folder = folder / f"photos-{count}-{width}x{height}"
    if (folder / CLASSES[0]).is_dir():
        return folder
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    drawn: dict[int, bytes] = {}
    for number in range(count):
        seed = number % DISTINCT
        if seed not in drawn:
            drawn[seed] = photo(width, height, seed)
        text = f"number {number}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        place = temporary / CLASSES[seed % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05d}.jpg").write_bytes(b"\xff\xd8" + comment + drawn[seed][2:])
    temporary.rename(folder)
    return folder


def clip_folder(folder: Path) -> Path:
    """A CLIP of ViT-B/16's size with random weights, its tokenizer and image processor."""
    import residual_peft.demo

    folder = folder / "clip-b16"
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    bundled = Path(residual_peft.demo.__file__).parent / "clip"
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision("b16"), projection_dim=512
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def vision(name: str) -> dict[str, Any]:
    """Sizes of an image tower."""
    small = name == "s14"
    return {
        "hidden_size": 384 if small else 768,
        "intermediate_size": 1536 if small else 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 6 if small else 12,
        "image_size": 224,
        "patch_size": 14 if small else 16,
    }


def tower(name: str) -> Any:
    """An image tower of random weights: DINOv2's ViT-S/14, CLIP's ViT-B/16, SigLIP's ViT-B/16."""
    torch.manual_seed(0)
    if name == "s14":
        sizes = {k: v for k, v in vision("s14").items() if k != "intermediate_size"}
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    if name == "siglip":
        config = transformers.SiglipVisionConfig(**vision("b16"))
        return transformers.SiglipVisionModel(config).eval()
    config = transformers.CLIPVisionConfig(**vision("b16"), projection_dim=512)
    return transformers.CLIPVisionModelWithProjection(config).eval()


# --- the whole fit


class Watch:
    """The most memory that a process and its children held: resident, and their fair shares."""

    def __init__(self, pid: int) -> None:
        self.process, self.stop = psutil.Process(pid), threading.Event()
        self.resident = self.share = 0.0
        self.processes = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.wait(0.5):
            try:
                tree = [self.process, *self.process.children(recursive=True)]
            except psutil.Error:
                return
            resident = share = 0
            for each in tree:
                try:
                    resident += each.memory_info().rss
                    text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
                    share += int(re.findall(r"^Pss: +(\d+)", text, re.M)[0]) * 1024
                except (psutil.Error, OSError, IndexError):
                    continue
            self.resident = max(self.resident, resident / 2**20)
            self.share = max(self.share, share / 2**20)
            self.processes = max(self.processes, len(tree))


STAGE = re.compile(r"(?P<name>[^:]+): (?P<done>[\d,]+) \w+ in (?P<seconds>[\d.,]+) s")
"""What a command writes to a log when a stage is done."""


def fit(cache: Path, count: int, width: int, height: int, extra: list[str]) -> Row:
    """`residual-peft fit` on photos, and its own clock."""
    data, model = photos(cache, count, width, height), clip_folder(cache)
    out = cache / "adapter"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", "from residual_peft.cli import main; main()", "fit"]
    command += ["--model", str(model), "--data", str(data), "--out", str(out), *extra]
    started = time.perf_counter()
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ, bufsize=0
    )
    watch = Watch(run.pid)
    assert run.stdout is not None
    told, stages, first = heard(run.stdout, started)
    code = run.wait()
    watch.stop.set()
    if code:
        raise SystemExit(f"fit ended with {code}:\n{told[-3000:]}")
    return {
        "images": count,
        "pixels": [width, height],
        "megabytes_per_file": megabytes(data),
        "seconds": time.perf_counter() - started,
        "seconds_to_the_first_line": first,
        "stages": stages,
        "peak_resident_mib": watch.resident,
        "peak_share_mib": watch.share,
        "processes": watch.processes,
        "report": (out / "report.html").is_file(),
    }


def heard(stream: Any, started: float) -> tuple[str, list[Row], float | None]:
    """What a process says: all of it, the stages that it tells of, seconds to its first line."""
    told, first, stages = "", None, []
    for raw in iter(stream.readline, b""):
        now, line = time.perf_counter() - started, raw.decode("utf-8", "replace")
        first = now if first is None and line.strip() else first
        told += line
        if found := STAGE.search(line):
            done = int(found["done"].replace(",", ""))
            seconds = float(found["seconds"].replace(",", ""))
            rate = done / max(seconds, 1e-9)
            name = found["name"].strip()
            row = {"name": name, "done": done, "seconds": seconds, "until": now}
            stages.append(row | {"per_second": rate})
    return told, stages, first


def megabytes(folder: Path) -> float:
    """The mean size of its files."""
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    return sum(sizes) / len(sizes) / 1e6


def forward() -> Row:
    """Images per second of the model alone, on tensors, no gradients."""
    model, pixels = tower("b16"), torch.randn(BATCH, 3, 224, 224)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            run_tower(model, pixels)
            times.append(time.perf_counter() - started)
    return {"per_second": BATCH / min(times), "batch": BATCH, "threads": torch.get_num_threads()}


def decoding(width: int, height: int) -> Row:
    """Images per second from bytes to pixels, one core: all of a photo, and no more than needed."""
    processor = transformers.CLIPImageProcessorPil()
    contents = [photo(width, height, seed) for seed in range(4)]

    def rate(least: int | None) -> tuple[float, Tensor]:
        before = time.process_time()
        images = [to_rgb({"bytes": content}, least=least) for content in contents]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return len(contents) / (time.process_time() - before), pixels

    (whole, exact), (needed, near) = rate(None), rate(448)
    error = (exact - near).abs()
    return {
        "per_second_of_all_pixels": whole,
        "per_second_of_those_needed": needed,
        "mean_difference": float(error.mean()),
        "largest_difference": float(error.max()),
        "unit": "standard deviations of the normalized pixels",
    }


# --- what a pass keeps in memory


def noise(count: int) -> Iterator[dict[str, Tensor]]:
    """Batches of noise, made when they are asked for."""
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        labels = torch.arange(start, start + size) % len(CLASSES)
        yield {"pixel_values": torch.randn(size, 3, 224, 224), "labels": labels}


def small_pictures(count: int) -> ProcessedImages:
    """A data set of small files, resized to what the model takes."""
    rng, contents = np.random.default_rng(0), []
    for _ in range(count):
        stream = io.BytesIO()
        Pillow.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(stream, "PNG")
        contents.append({"bytes": stream.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=list(CLASSES))})
    labels = [number % len(CLASSES) for number in range(count)]
    data = Dataset.from_dict({"image": contents, "label": labels}, features=features)
    return ProcessedImages(data, transformers.CLIPImageProcessorPil())


def one_pass(name: str, kind: str, count: int, folder: Path) -> tuple[Any, int]:
    """Run a pass; what it gives, and the bytes per image that it has to keep."""
    model = get_peft_model(tower(name), ResiDualConfig(components=16 if name == "siglip" else None))
    shutil.rmtree(folder, ignore_errors=True)
    if kind == "bases and coordinates":
        made: Any = collect_with_basis(model, noise(count))
        part = made.coordinates.shape[1] + made.readout.shape[1]
        return made, 4 * part + written(model)
    if kind == "coordinates":
        made = collect_coordinates(model, noise(count))
        return made, 4 * (made.coordinates.shape[1] + made.readout.shape[1])
    if kind == "contributions":
        made = collect_contributions(model, noise(count))
        numbers = sum(part.coordinates.shape[1] for part in made.parts) + made.readout.shape[1]
        return made, 4 * numbers
    if kind == "class means":
        return class_means(model, noise(count), CLASSES), 0
    if kind == "write_coordinates":
        made = write_coordinates(
            model, small_pictures(count), folder, fit_basis=True, shard_size=128, num_workers=0
        )
        return made, 0
    weights = torch.nn.functional.normalize(torch.randn(len(CLASSES), width_of(model)), dim=1)
    images = small_pictures(count)
    classifier = ZeroShotClassifier(
        model, CLASSES, weights, logit_scale=100.0, image_processor=images.image_processor
    )
    return evaluate(classifier, images, num_workers=0), 4 * len(CLASSES) + 16


def width_of(model: Any) -> int:
    """d, the width of the readout."""
    return int(run_tower(model, torch.zeros(1, 3, 224, 224)).shape[1])


def written(model: Any) -> int:
    """Bytes that heads and MLPs write to the readout of one image, stream and sum of weights."""
    config, pools = model.config, 12 if "Siglip" in type(model.get_base_model()).__name__ else 1
    return 4 * (2 * config.num_hidden_layers + 1) * config.hidden_size * pools


KINDS = (
    "bases and coordinates",
    "coordinates",
    "contributions",
    "class means",
    "evaluate",
    "write_coordinates",
)
PASSES = [(name, kind) for name in ("s14", "b16") for kind in KINDS]
PASSES += [("siglip", "bases and coordinates"), ("siglip", "class means")]


def peak() -> int:
    """The most bytes that this process has had in memory."""
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) * 1024


def measured(name: str, kind: str, count: int, folder: Path) -> Row:
    """Peak during a pass, and what is left when its result is gone.

    Less what glibc holds for later, some 170 MB, more or less by chance.
    """
    made, kept = one_pass(name, kind, count, folder)
    during = peak()
    del made
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return {"peak": during, "after": psutil.Process().memory_info().rss, "kept": kept}


def memory(counts: list[int], cache: Path, wanted: list[str], rows: dict[str, Row]) -> Row:
    """Growth per image of every pass, each number of images in a process of its own.

    A process's peak differs by some 50 MiB from one run to the next: where a row of as many images
    is there already, its peaks are kept beside the new ones, and the medians count.
    """
    for name, kind in PASSES:
        title = f"{name}, {kind}"
        if wanted and not any(word in title for word in wanted):
            continue
        few, many = (
            apart("--pass", name, kind, str(count), "--cache", str(cache)) for count in counts
        )
        every = [[few["peak"] / 2**20], [many["peak"] / 2**20]]
        left = [few["after"] / 2**20, many["after"] / 2**20]
        before = rows.get(title, {})
        if before.get("images") == counts:
            earlier = before.get("peaks_mib") or [[peak] for peak in before["peak_mib"]]
            every = [old + new for old, new in zip(earlier, every, strict=True)]
        peaks = [median(some) for some in every]
        step = (counts[1] - counts[0]) / 2**20
        rows[title] = {
            "bytes_per_image": (peaks[1] - peaks[0]) / step,
            "bytes_kept_per_image": many["kept"],
            "peak_mib": peaks,
            "peaks_mib": every,
            "left_mib": left,
            "images": counts,
            "runs": len(every[0]),
        }
        print(title, rows[title], flush=True)
    return rows


# --- all of it


def apart(*arguments: str) -> Row:
    """What this script says of one thing, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def rounded(value: Any) -> Any:
    """Four significant digits are more than such a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def machine() -> Row:
    """What this ran on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "torch": torch.__version__,
        "pillow": Pillow.__version__,
    }


def main() -> None:
    """Measure, and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="0: no fit")
    parser.add_argument("--size", default="4000x3000")
    parser.add_argument("--memory", type=int, nargs=2, default=[200, 1000], metavar="COUNT")
    parser.add_argument("--only", nargs="*", default=[], help="passes whose names hold these words")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir(), "residual-peft-real-size")
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pass", nargs=3, dest="here", help=argparse.SUPPRESS)
    parser.add_argument("--forward", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("fit_options", nargs="*", help="for residual-peft fit, after --")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.forward:
        print(json.dumps(forward()))
        return
    if options.here:
        name, kind, count = options.here
        place = options.cache / "store"
        print(json.dumps(measured(name, kind, int(count), place)))
        shutil.rmtree(place, ignore_errors=True)
        return
    results = json.loads(options.out.read_text()) if options.out.is_file() else {}
    results["machine"] = machine()
    width, height = map(int, options.size.split("x"))
    parts: dict[str, Callable[[], Any]] = {}
    if options.images:
        parts["decoding"] = lambda: decoding(width, height)
        parts["forward"] = lambda: apart("--forward")
        parts["fit"] = lambda: fit(
            options.cache, options.images, width, height, options.fit_options
        )
    if not options.no_memory:
        parts["memory"] = lambda: memory(
            options.memory, options.cache, options.only, results.get("memory", {})
        )
    for part, measure in parts.items():
        results[part] = rounded(measure())
        write_json(options.out, results)
        print(part, json.dumps(results[part], indent=1), flush=True)


if __name__ == "__main__":
    main()
