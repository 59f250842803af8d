"""The plan of large runs: bytes, passes and machine time; `docs/large_runs.md` shows it.

    python benchmarks/large_runs.py        # writes large_runs.json beside itself; half a minute

Bytes and operations are arithmetic. Decoding, the digest of a data set, the all-reduce (gloo) and
the solver's evaluations are measured here. What nobody here could run stands under "assumed".
"""

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image
from peft import get_peft_model
from PIL import Image as Pillow
from torch import distributed, multiprocessing
from transformers import CLIPImageProcessorPil

from residual_peft import Objective, ResiDualConfig, ZeroShotClassifier, solve_gains
from residual_peft.bases.moments import Moments
from residual_peft.classifiers.backbones import load_backbone
from residual_peft.data import ProcessedImages, batches
from residual_peft.demo.tasks import HANDWRITING_TEMPLATES, handwriting
from residual_peft.hub.files import write_json
from residual_peft.solvers.coordinates import collect_with_basis
from residual_peft.solvers.objectives import GainProblem
from residual_peft.solvers.store import coordinate_bytes, data_digest

GRAIN = 20  # of 255
OUT = Path(__file__).with_suffix(".json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """Sizes of a CLIP's image tower; symbols of the method: L, H, e, D, d."""

    layers: int
    heads: int
    head_dim: int
    width: int
    readout: int
    patches: int
    patch: int

    @property
    def flops(self) -> int:
        """Operations of one forward."""
        tokens = self.patches + 1
        # four maps of attention, an MLP four times as wide; then QKᵀ and its product with V
        layer = tokens * 12 * self.width**2 + 2 * tokens**2 * self.width
        patches = self.patches * 3 * self.patch**2 * self.width
        return 2 * (patches + self.layers * layer + self.width * self.readout)

    def coordinates(self, units: str, components: int | None = None) -> int:
        """Coordinates of one image, at most: heads have e + 1 directions, MLPs d."""
        head, mlp = min(self.head_dim + 1, self.readout), self.readout
        if components is not None:
            head, mlp = min(head, components), min(mlp, components)
        return self.layers * (self.heads * head + (mlp if units == "heads and MLPs" else 0))

    def moment_numbers(self) -> int:
        """Means and second moments of heads and MLPs: what a basis needs, and what is summed."""
        head = self.head_dim + 1
        return self.layers * (self.heads * head * (head + 1) + self.readout * (self.readout + 1))

    def raw_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that `write_coordinates(fit_basis=True)` keeps of an image for the time being."""
        written = (2 * self.layers + 2) * self.width  # heads and MLPs, embed, the stream's end
        return written * dtype.itemsize + self.readout * 4 + 8


MODELS = {
    "ViT-B/16": Model(12, 12, 64, 768, 512, patches=196, patch=16),
    "ViT-L/14": Model(24, 16, 64, 1024, 768, patches=256, patch=14),
}
SETS = {  # images, classes
    "ImageNet-1k": (1_281_167, 1_000),
    "ImageNet-21k": (14_197_122, 21_841),
    "LAION-400M": (413_000_000, None),
    "LAION-2B": (2_320_000_000, None),
}
CHOICES = {
    "heads and MLPs": ("heads and MLPs", None),
    "heads": ("heads", None),
    "heads and MLPs, 16 each": ("heads and MLPs", 16),
    "heads, 16 each": ("heads", 16),
}
ASSUMED = {
    "accelerator": "H100 SXM",
    "accelerator_peak_teraflops_bfloat16": 989,  # data sheet, dense
    "accelerator_share_of_peak": 0.4,
    "accelerators_per_machine": 8,
    "cores_per_machine": 128,
    "cpu_teraflops_float64": 2,  # of such a machine, in large matrix products
    "disk_gigabytes_per_second": 3,  # one NVMe drive
    "kilobytes_per_image": {
        "ImageNet-1k": 110,
        "ImageNet-21k": 90,
        "LAION-400M": 25,  # 256 px
        "LAION-2B": 40,  # 384 px
    },
    "night_hours": 8,
}


def decoding(count: int = 200) -> dict[str, float]:
    """Images per second that one core turns from JPEG files into pixel values; kB of a file.

    500 x 375, with grain, so that they are as large as photos are and take as long.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.jpg") for index in range(count)]
        for path in paths:
            coarse = Pillow.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Pillow.Resampling.BICUBIC))
            grainy = smooth + rng.normal(0, GRAIN, (375, 500, 1))
            Pillow.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        rows = Dataset.from_dict(
            {"image": list(map(str, paths))}, features=Features({"image": Image()})
        )
        images = ProcessedImages(rows, CLIPImageProcessorPil())
        images[0]

        def read() -> None:
            for index in range(count):
                images[index]

        rounds = [seconds(read, time.process_time) for _ in range(4)]
        size = sum(path.stat().st_size for path in paths) / count / 1e3
        return {"rate": count / min(rounds), "kilobytes": size}


def digest_rates(count: int = 2000) -> dict[str, float]:
    """Images per second in the digest of a data set: of files, and of 100 kB in the set itself."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{index}.jpg") for index in range(count)]
        for path in paths:
            path.touch()
        inside = [{"bytes": os.urandom(100_000), "path": None} for _ in range(count)]
        found = {}
        for name, images in (("files", list(map(str, paths))), ("embedded", inside)):
            rows = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
            digest = partial(data_digest, ProcessedImages(rows, None))
            rounds = [seconds(digest, time.process_time) for _ in range(4)]
            found[name] = count / min(rounds)
        return found


def reduction_seconds(processes: int = 2) -> float:
    """Seconds in which processes on this machine sum the moments of a ViT-B/16 over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_reduce, (processes, folder), processes)
        return min(float(text) for text in Path(folder, "seconds").read_text().split())


def _reduce(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    model = MODELS["ViT-B/16"]
    store = distributed.FileStore(f"{folder}/store", processes)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    shapes = [(model.heads, model.head_dim + 1)] * model.layers + [(model.layers, model.readout)]
    parts = []
    for shape in shapes:
        parts.append(Moments())
        parts[-1].update(torch.randn(4, *shape))

    def reduce() -> None:
        for part, shape in zip(parts, shapes, strict=True):
            part.across_processes(shape, torch.device("cpu"))

    reduce()
    rounds = [seconds(reduce) for _ in range(20)]
    if rank == 0:
        Path(folder, "seconds").write_text(" ".join(map(str, rounds)))
    distributed.destroy_process_group()


def evaluations() -> int:
    """Evaluations of the convex objective in one fit of the bundled model to handwriting."""
    clip, train = load_backbone(), handwriting()["train"]
    classifier = ZeroShotClassifier.from_text(
        get_peft_model(clip.model, ResiDualConfig()),
        clip.tokenizer,
        train.features["label"].names,
        HANDWRITING_TEMPLATES,
        image_processor=clip.image_processor,
    )
    rows = collect_with_basis(classifier.model, batches(train, clip.image_processor))
    calls, real = [], GainProblem.value_and_gradient

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    GainProblem.value_and_gradient = counted
    try:
        solve_gains(classifier, rows, objective=Objective(normalized=False, strength=1e-4))
    finally:
        GainProblem.value_and_gradient = real
    return len(calls)


def seconds(
    function: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a call; with `time.process_time` those of a core, whoever else is busy."""
    started = clock()
    function()
    return clock() - started


def per_image(model: Model) -> dict[str, Any]:
    """What one image takes and leaves."""
    choices = {}
    for name, choice in CHOICES.items():
        count = model.coordinates(*choice)
        sizes = {kind: coordinate_bytes(1, count, model.readout, d) for kind, d in DTYPES.items()}
        choices[name] = {"coordinates": count, "bytes": sizes}
    return {
        **asdict(model),
        "gigaflop": model.flops / 1e9,
        "moments_megabytes": model.moment_numbers() * 8 / 1e6,
        "raw_bytes": {kind: model.raw_bytes(dtype) for kind, dtype in DTYPES.items()},
        "choices": choices,
    }


def plan(model: Model, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """One model on one data set."""
    images, classes = SETS[name]
    peak, share = (
        ASSUMED[f"accelerator_{key}"] for key in ("peak_teraflops_bfloat16", "share_of_peak")
    )
    encoder = peak * 1e12 * share / model.flops
    gpu_hours = images / encoder / 3600
    core_hours = images / measured["decoding_images_per_second_per_core"] / 3600
    read_bytes = images * ASSUMED["kilobytes_per_image"][name] * 1e3
    machine = max(
        gpu_hours / ASSUMED["accelerators_per_machine"],
        core_hours / ASSUMED["cores_per_machine"],
        read_bytes / ASSUMED["disk_gigabytes_per_second"] / 1e9 / 3600,
    )
    found: dict[str, Any] = {
        "images": images,
        "read_terabytes": read_bytes / 1e12,
        "gpu_hours": gpu_hours,
        "decoding_core_hours": core_hours,
        "cores_that_keep_one_gpu_busy": encoder / measured["decoding_images_per_second_per_core"],
        "hours_on_one_machine": machine,
        "machines_for_a_night": math.ceil(machine / ASSUMED["night_hours"]),
        "digest_hours": {
            kind: images / measured[f"digest_images_per_second_{kind}"] / 3600
            for kind in ("files", "embedded")
        },
        "raw_terabytes": {k: images * model.raw_bytes(d) / 1e12 for k, d in DTYPES.items()},
        "choices": {},
    }
    for choice, arguments in CHOICES.items():
        count = model.coordinates(*arguments)
        sizes = {k: coordinate_bytes(images, count, model.readout, d) for k, d in DTYPES.items()}
        entry = {"terabytes": {kind: size / 1e12 for kind, size in sizes.items()}}
        if classes:  # without labels there is nothing to fit
            entry["fit"] = fit(model, images, classes, count, sizes["bfloat16"], measured)
            entry["class_head"] = class_head(images, classes, count)
        found["choices"][choice] = entry
    return found


def fit(
    model: Model, images: int, classes: int, count: int, size: int, measured: dict[str, Any]
) -> dict[str, float]:
    """One fit of the gains: each evaluation reads all coordinates, for two products."""
    width = min(model.readout, classes)
    operations = 2 * images * (2 * count * width + 2 * model.readout * classes)
    reading = size / (ASSUMED["disk_gigabytes_per_second"] * 1e9)
    computing = operations / (ASSUMED["cpu_teraflops_float64"] * 1e12)
    return {
        "seconds_to_read_once": reading,
        "teraflop_per_evaluation": operations / 1e12,
        "hours": measured["evaluations_of_a_fit"] * max(reading, computing) / 3600,
    }


def class_head(images: int, classes: int, count: int) -> dict[str, float]:
    """A class head from sums: what is held, what is saved, and the products of its fit.

    `HeadStatistics` hold K² + C K numbers in float64 and save half of K². The fit sums them, takes
    K × K apart (9 K³) and, in a second pass, has what every image would score without itself.
    """
    machine = ASSUMED["cpu_teraflops_float64"] * 1e12
    sums = 2 * images * count**2
    apart = 9 * count**3
    left_out = 2 * images * count * (count + 2 * classes)
    return {
        "statistics_gigabytes": 8 * (count**2 + classes * count) / 1e9,
        "saved_gigabytes": 8 * (count * (count + 1) / 2 + classes * count) / 1e9,
        "head_megabytes": {
            kind: count * classes * dtype.itemsize / 1e6
            for kind, dtype in (("float32", torch.float32), ("float16", torch.float16))
        },
        "teraflop_of_sums": sums / 1e12,
        "seconds": {
            "sums": sums / machine,
            "decomposition": apart / machine,
            "second pass": left_out / machine,
        },
    }


def rounded(value: Any) -> Any:
    """Three significant digits of what is not a count."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main() -> None:
    """Measure, and write the plan."""
    digest, jpeg = digest_rates(), decoding()
    measured = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "torch": torch.__version__,
        "decoding_images_per_second_per_core": round(jpeg["rate"]),
        "decoding_kilobytes_per_file": round(jpeg["kilobytes"]),
        "digest_images_per_second_files": round(digest["files"]),
        "digest_images_per_second_embedded": round(digest["embedded"]),
        "reduction_seconds_two_processes": reduction_seconds(),
        "evaluations_of_a_fit": evaluations(),
    }
    write_json(
        OUT,
        rounded(
            {
                "measured": measured,
                "assumed": ASSUMED,
                "eigenvalue_relative_error": {
                    f"{count:,}": math.sqrt(2 / count) for count in (10_000, 100_000, 1_000_000)
                },
                "models": {name: per_image(model) for name, model in MODELS.items()},
                "plans": {
                    name: {data: plan(model, data, measured) for data in SETS}
                    for name, model in MODELS.items()
                },
            }
        ),
    )


if __name__ == "__main__":
    main()
