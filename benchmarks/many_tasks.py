"""What many tasks cost beside one forward pass of the backbone.

    python benchmarks/many_tasks.py        # writes many_tasks.json beside itself; a few minutes

A CLIP ViT-B/16 of random weights (time does not depend on their values), 224 px, on two cores. In
each round the plain model runs, then one over the same weights answers 1, 10 and 100 tasks of 10
classes; the fastest round of each counts, as other programs can only slow it down.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from residual_peft import ResiDualConfig, TaskSet, ZeroShotClassifier, gains_of
from residual_peft.hub.files import write_json
from residual_peft.towers.registry import base_model
from residual_peft.towers.running import run_tower
from residual_peft.tuner import readout_state

UNITS = {"heads": ("head",), "heads and MLPs": ("head", "mlp")}
COUNTS = (1, 10, 100)
CLASSES = 10
THREADS = 2


def backbone() -> CLIPVisionModelWithProjection:
    """The image tower of CLIP ViT-B/16."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=512,
        image_size=224,
        patch_size=16,
    )
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


def over_the_same_weights(model: nn.Module) -> CLIPVisionModelWithProjection:
    """The plain model over an adapted or merged one's weights, not a copy.

    Where weights lie in memory changes a forward pass by several percent, from run to run.
    """
    state = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in base_model(model).state_dict().items()
        if "residual_peft" not in name
    }
    plain = backbone()
    plain.load_state_dict(state, assign=True)
    return plain.eval().requires_grad_(False)


def task_set(units: tuple[str, ...], count: int) -> TaskSet:
    """Tasks over the basis of the weights, all components of each unit, with random gains."""
    model = get_peft_model(backbone(), ResiDualConfig(units=units), adapter_name="0")
    for index in range(1, count):
        model.base_model.add_weighted_adapter(["0"], [1.0], str(index))  # over the same basis
    tasks = TaskSet(model.eval())
    for index in range(count):
        name = str(index)
        gains = gains_of(model, name)
        gains.data = 1 + torch.randn(gains.shape)
        names, embeddings = [str(i) for i in range(CLASSES)], torch.randn(CLASSES, 512)
        classifier = ZeroShotClassifier(model, names, embeddings)
        tasks.add(name, classifier, adapter_name=name)
    return tasks


def seconds(function: Any, *arguments: Any) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


@torch.inference_mode()
def measure(units: tuple[str, ...], batch: int, rounds: int) -> dict[str, Any]:
    """Time the plain model, and the same with tasks, in turn."""
    tasks = task_set(units, max(COUNTS))
    plain = over_the_same_weights(tasks.model)
    pixels = torch.randn(batch, 3, 224, 224)
    names = list(tasks)
    states = {id(readout_state(tasks.model, name)) for name in names}
    run_tower(plain, pixels)
    tasks.logits(pixels, names)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        times.setdefault("forward", []).append(seconds(run_tower, plain, pixels))
        for count in COUNTS:
            taken = seconds(tasks.logits, pixels, names[:count])
            times.setdefault(str(count), []).append(taken)
    forward = times["forward"]
    ratios = {
        str(count): [taken / plain for taken, plain in zip(times[str(count)], forward, strict=True)]
        for count in COUNTS
    }
    return {
        "components": gains_of(tasks.model, "0").numel(),
        "bases_in_memory": len(states),
        "forward_seconds": round(min(forward), 3),
        "ratio": {str(count): round(min(times[str(count)]) / min(forward), 4) for count in COUNTS},
        "ratio_of_each_round": {
            count: [round(ratio, 4) for ratio in found] for count, found in ratios.items()
        },
    }


def main() -> None:
    """Measure with both kinds of units."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    results: dict[str, Any] = {
        "backbone": "CLIP ViT-B/16, 224 px, random weights, float32",
        "batch": options.batch,
        "classes_per_task": CLASSES,
        "rounds": options.rounds,
        "threads": THREADS,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    for name, units in UNITS.items():
        results[name] = measure(units, options.batch, options.rounds)
        print(name, results[name], flush=True)
        write_json(options.out, results)


if __name__ == "__main__":
    main()
