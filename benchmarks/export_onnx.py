"""What an exported adapter weighs, and how fast onnxruntime answers beside torch.

    python benchmarks/export_onnx.py          # writes export_onnx.json beside itself

A CLIP ViT-B/16 of random weights (time does not depend on their values) at 224 px and the bundled
model, in float32, with gains alone and with a class head on all coordinates of heads and MLPs.
Torch and onnxruntime have one thread each and run in turn in one process; the processor's time is
taken, not the clock's, so that other programs on the machine count for little, and the fastest
round of each counts. Packages are measured as they are installed here, with all that they require.
"""

import re
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from many_tasks import backbone
from packaging.requirements import Requirement
from peft import get_peft_model
from speed import machine
from transformers import CLIPImageProcessorPil

from residual_peft import ResiDualConfig, ZeroShotClassifier, export_onnx
from residual_peft.classifiers.backbones import load_image_tower
from residual_peft.classifiers.exporting.graph import ClassifierGraph
from residual_peft.classifiers.exporting.onnx import INPUT, OUTPUTS, running
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.hub.files import write_json
from residual_peft.tuner import adapted_tower, gains_of, readout_state

OUT = Path(__file__).with_suffix(".json")
CLASSES = 10
BATCHES = {1: 8, 8: 3}  # images -> rounds


def classifier(tower: Any, size: int, *, head: bool) -> ZeroShotClassifier:
    """Random gains on a basis from the weights, and a random class head where one is wanted."""
    model = get_peft_model(tower, ResiDualConfig()).eval()
    with torch.no_grad():
        gains = gains_of(model)
        gains.copy_(1 + 0.3 * torch.randn_like(gains))
    width = adapted_tower(model).readout_width
    crop = {"height": size, "width": size}
    made = ZeroShotClassifier(
        model,
        [f"class {number}" for number in range(CLASSES)],
        torch.randn(CLASSES, width),
        logit_scale=10.0,
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop),
    )
    if head:
        columns = len(readout_state(model).directions)
        weights = torch.randn(columns, CLASSES) / columns**0.5
        plain = ClassHead(torch.zeros(columns), torch.ones(columns), weights, torch.zeros(CLASSES))
        made.head = TrainedHead(plain)
    return made


def fastest(rounds: int, *functions: Callable[[], Any]) -> list[float]:
    """Run functions in turn, once without a clock; the fewest seconds of the processor of each."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for taken, function in zip(times, functions, strict=True):
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


def measured(made: ZeroShotClassifier, size: int) -> dict[str, Any]:
    """Bytes of the file, its distance from torch, and seconds by images at once."""
    with tempfile.TemporaryDirectory() as folder:
        found = export_onnx(made, Path(folder) / "model.onnx")
        session = running(found.path)
    tower = adapted_tower(made.model).tower
    row = {
        "megabytes": round(found.bytes / 1e6, 1),
        "tower_megabytes": round(sum(p.numel() * 4 for p in tower.parameters()) / 1e6, 1),
        "probability_difference": found.probability_difference,
        "export_seconds": round(found.seconds, 1),
    }
    graph = ClassifierGraph(made)
    for count, rounds in BATCHES.items():
        images = torch.randn(count, 3, size, size)
        array = images.numpy()
        with graph.ready(), torch.inference_mode():
            torch_seconds, onnx_seconds = fastest(
                rounds,
                lambda images=images: graph(images),
                lambda array=array: session.run(list(OUTPUTS), {INPUT: array}),
            )
        row[f"batch_{count}"] = {
            "torch_images_per_processor_second": round(count / torch_seconds, 2),
            "onnxruntime_images_per_processor_second": round(count / onnx_seconds, 2),
            "onnxruntime_to_torch": round(torch_seconds / onnx_seconds, 3),
        }
    return row


def required(*names: str) -> set[str]:
    """Packages with all that they require, extras aside, as far as it is for this platform."""
    missing, seen = [*names], set()
    while missing:
        name = re.sub(r"[-_.]+", "-", missing.pop()).lower()
        try:
            requires = [] if name in seen else metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        seen.add(name)
        wanted = [Requirement(text) for text in requires]
        missing += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return seen


def installed(names: set[str]) -> dict[str, Any]:
    """What packages take on this disk."""
    files = [file for name in names for file in metadata.files(name) or ()]
    sizes = [path.stat().st_size for file in files if (path := Path(file.locate())).is_file()]
    return {"packages": len(names), "megabytes": round(sum(sizes) / 1e6)}


def all_installed() -> dict[str, Any]:
    """What a machine must have to answer, in either way, and to export."""
    ours = required("residual-peft")
    return {
        "to answer with onnxruntime": installed(required("onnxruntime", "numpy", "pillow")),
        "to answer with torch": installed(ours),
        "to export, on top": installed(required("onnxruntime", "onnxscript") - ours),
        "to explore, on top": installed(required("gradio") - ours),
    }


def main() -> None:
    """Measure all of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {"machine": machine() | {"threads": 1}, "rows": {}}
    for name, tower, size in (
        ("ViT-B/16", backbone, 224),
        ("bundled model", load_image_tower, 40),
    ):
        for kind, head in (("gains", False), ("class head", True)):
            row = measured(classifier(tower(), size, head=head), size)
            results["rows"][f"{name}, {kind}"] = row
            print(name, kind, row, flush=True)
            write_json(OUT, results)
    results["installed"] = all_installed()
    for name in ("onnxruntime", "onnxscript", "torch"):
        results["machine"][name] = metadata.version(name)
    write_json(OUT, results)
    print(results["installed"])


if __name__ == "__main__":
    main()
