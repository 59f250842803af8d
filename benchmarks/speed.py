"""Speed and memory against what they are compared with: one row per target, one table.

    python benchmarks/speed.py                # all rows; writes speed.json beside itself
    python benchmarks/speed.py step merged    # these rows anew, the others as they were

A CLIP ViT-B/16 of random weights (time does not depend on their values) at 224 px, float32, unless
a row says otherwise. Every row runs in a process of its own. Both sides of a ratio run in turn in
that process, and the fastest round of each counts: other programs on the machine only slow it down.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import ClassLabel, Dataset, Features, Image
from many_tasks import THREADS, backbone, over_the_same_weights, seconds
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from residual_peft import (
    Objective,
    ResiDualConfig,
    SpectralBasis,
    ZeroShotClassifier,
    collect_with_basis,
    load_data,
    solve_gains,
    strength_path,
    trainer_kwargs,
    training_arguments,
    write_coordinates,
)
from residual_peft.app.demonstration import handwriting_task
from residual_peft.bases.accumulator import BasisAccumulator
from residual_peft.bases.moments import Moments
from residual_peft.classifiers.backbones import load_backbone, load_image_tower
from residual_peft.data import ProcessedImages, collate
from residual_peft.data.metrics import accuracy
from residual_peft.demo.tasks import handwriting
from residual_peft.hub.files import write_json
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.solvers.objectives import GainProblem
from residual_peft.towers.running import run_tower
from residual_peft.tuner import readout_state

OUT = Path(__file__).with_suffix(".json")
FLOPS_PER_IMAGE = 2 * (
    196 * 768 * 768  # patches
    + 12 * (197 * (4 * 768 * 768 + 2 * 768 * 3072) + 2 * 197 * 197 * 768)  # layers
    + 768 * 512  # projection
)
LORA = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
Row = dict[str, Any]


def pixels(count: int) -> Tensor:
    """Noise in the shape of images (count, 3, 224, 224)."""
    return torch.randn(count, 3, 224, 224)


def fastest(rounds: int, *functions: Callable[[], Any]) -> list[float]:
    """Run functions in turn, once without a clock; the fewest seconds that each took."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for taken, function in zip(times, functions, strict=True):
            taken.append(seconds(function))
    return [min(taken) for taken in times]


def resident() -> float:
    """Memory of this process now, MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


class Peak:
    """The most memory that the block held beyond what was held before it, MiB."""

    above = 0.0

    def __enter__(self) -> "Peak":
        self.start, self.stop = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.stop.wait(0.005):
            self.above = max(self.above, process.memory_info().rss / 2**20 - self.start)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()


def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a large matrix product."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    (taken,) = fastest(5, lambda: a @ b)
    return 2 * 2048**3 / taken


def basis_speed() -> Row:
    """Images per second while bases are fitted, heads and MLPs."""
    batch = 32
    model, images = backbone(), pixels(batch)
    accumulator = BasisAccumulator(model)
    with torch.inference_mode():
        forward, fitting = fastest(
            6, lambda: run_tower(model, images), lambda: accumulator.update(images)
        )
    readout = seconds(lambda: SpectralBasis.from_accumulator(accumulator))
    return {
        "reached": forward / fitting,
        "images_per_second": batch / fitting,
        "batch": batch,
        "eigendecompositions_seconds_once": readout,
    }


def basis_memory() -> Row:
    """Peak memory of fitting bases to 10 times as many images, each in a process of its own."""
    batches = os.environ.get("SPEED_BATCHES")
    if batches:
        model = backbone()
        with Peak() as peak:
            SpectralBasis.fit(model, (pixels(8) for _ in range(int(batches))))
        return {"reached": peak.above}
    few, many = (apart("basis_memory", SPEED_BATCHES=count)["reached"] for count in ("3", "30"))
    return {"reached": many / few, "mib": [few, many], "images": [24, 240]}


def moments() -> Row:
    """Per head: streaming moments and eigenvectors against full SVDs of stored contributions."""
    heads, size, width, count, batch = 12, 64, 512, 10_000, 100
    maps = torch.randn(heads, size, width) / size**0.5

    def captured(start: int) -> Tensor:  # what each head's output projection reads
        return torch.randn(batch, heads, size, generator=torch.Generator().manual_seed(start))

    def ours() -> Tensor:
        found = Moments()
        for start in range(0, count, batch):
            found.update(captured(start))
        root = torch.linalg.cholesky(found.covariance())  # Σ = L Lᵀ, so x = z B varies as Bᵀ L
        small = (maps.double() @ maps.double().mT).contiguous()
        return torch.linalg.eigvalsh(root.mT @ small @ root).flip(-1)

    def stored() -> Tensor:
        whole = torch.empty(heads, count, width)
        for start in range(0, count, batch):
            part = torch.einsum("bhs,hsw->hbw", captured(start), maps)
            whole[:, start : start + batch] = part
        return whole

    def svd(whole: Tensor) -> Tensor:
        centred = whole - whole.mean(1, keepdim=True)
        return torch.linalg.svd(centred, full_matrices=False).S.square() / (count - 1)

    with Peak() as small:
        mine = ours()
    with Peak() as large:
        whole = stored()
        theirs = svd(whole)
    error = float((mine - theirs[:, :size]).abs().max() / mine.max())
    draw = fastest(3, lambda: [captured(start) for start in range(0, count, batch)])[0]
    fast, slow = fastest(2, ours, lambda: svd(whole))
    return {
        "reached": (fast - draw) / slow,
        "memory": small.above / large.above,
        "mib": [small.above, large.above],
        "seconds": [fast - draw, slow],
        "eigenvalues_differ_by": error,
        "setting": f"{heads} heads of {size}, {count} images, width {width}",
    }


def moments_memory() -> Row:
    """Their peak memory, from the same run of `moments`."""
    row = moments()
    return {"reached": row["memory"], "mib": row["mib"], "setting": row["setting"]}


class _Steps(TrainerCallback):
    """Seconds of each training step."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.perf_counter()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.taken.append(time.perf_counter() - self.started)


def classifier_of(model: nn.Module, classes: int = 100) -> ZeroShotClassifier:
    """Random class embeddings over a model."""
    torch.manual_seed(1)
    names = [str(i) for i in range(classes)]
    return ZeroShotClassifier(model, names, torch.randn(classes, 512))


def trained(model: PeftModel, steps: int, batch: int) -> tuple[float, float]:
    """Fastest step of the HF Trainer, and the most memory above the loaded model in MiB."""
    classifier, timer = classifier_of(model), _Steps()
    items = [{"pixel_values": p, "labels": 0} for p in pixels(batch)] * steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=items,
            data_collator=collate,
            compute_loss_func=classifier.loss,
            callbacks=[timer],
        )
        trainer.remove_callback(PrinterCallback)
        with Peak() as peak:
            trainer.train()
    return min(timer.taken[1:]), peak.above


def step() -> Row:
    """A Trainer step in readout mode against PEFT's LoRA; memory is in the next row."""
    batch = 16
    ours, memory = trained(get_peft_model(backbone(), ResiDualConfig()), 5, batch)
    lora, lora_memory = trained(get_peft_model(backbone(), LORA), 4, batch)
    return {
        "reached": lora / ours,
        "images_per_second": [batch / ours, batch / lora],
        "memory_mib": [memory, lora_memory],
        "batch": batch,
    }


def step_memory() -> Row:
    """Memory above the loaded model in that step."""
    kind = os.environ.get("SPEED_STEP")
    if kind:
        config = LORA if kind == "lora" else ResiDualConfig()
        return {"reached": trained(get_peft_model(backbone(), config), 3, 16)[1]}
    found = [apart("step_memory", SPEED_STEP=kind)["reached"] for kind in ("readout", "lora")]
    return {"reached": found[0] / found[1], "mib": found, "batch": 16}


class _Scores(TrainerCallback):
    """Seconds since the beginning of training, and the accuracy, at each evaluation."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.perf_counter()

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        score = kwargs["metrics"]["eval_accuracy"]
        self.seen.append((time.perf_counter() - self.started, score))

    @property
    def best(self) -> tuple[float, float]:
        """Seconds to the first of the best epochs, and its accuracy."""
        top = max(score for _, score in self.seen)
        return next((taken, score) for taken, score in self.seen if score == top)


def to_its_best(classifier: ZeroShotClassifier, **options: Any) -> tuple[float, float]:
    """Train on handwriting by the HF Trainer: seconds to the best epoch, validation accuracy.

    The images are prepared before the clock starts.
    """
    data, scores = load_data(handwriting()), _Scores()
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(folder, disable_tqdm=True, **options)
        given = trainer_kwargs(classifier, data, arguments, patience=None)
        for part in ("train_dataset", "eval_dataset"):
            given[part] = list(given[part])
        given["callbacks"].append(scores)
        trainer = Trainer(**given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return scores.best


def fit_against_lora() -> Row:
    """Gains from coordinates against LoRA by the HF Trainer, bundled model and handwriting.

    Ours: from the coordinates to within 0.2 points of the accuracy at which the HF Trainer leaves
    the same gains. LoRA's: to its best epoch. Accuracies are those on validation images.
    """
    task = handwriting_task(load_backbone())
    model = get_peft_model(task.backbone.model, ResiDualConfig())
    started = time.perf_counter()
    train = collect_with_basis(model, task.train)
    validation = collect_coordinates(model, task.validation)
    encoding = time.perf_counter() - started
    classifier = task.classifier(model)
    gains_seconds, wanted = to_its_best(classifier)
    linear = Objective(normalized=False)
    started = time.perf_counter()
    strength = strength_path(classifier, train, validation, objective=linear).best
    path = time.perf_counter() - started
    chosen = replace(linear, strength=strength)

    def solve(iterations: int = 500) -> Tensor:
        return solve_gains(
            classifier,
            train,
            objective=chosen,
            max_iterations=iterations,
            dtype=torch.float32,
        ).gains

    def score(iterations: int) -> float:
        logits = classifier.logits(validation.adapted(solve(iterations)))
        return accuracy(logits, validation.labels)

    needed = next(count for count in range(1, 500) if score(count) >= wanted - 0.002)
    solving, optimum = fastest(5, lambda: solve(needed), solve)
    tower = task.classifier(get_peft_model(load_image_tower(task.backbone.name), LORA))
    lora, lora_accuracy = to_its_best(
        tower,
        optim="adamw_torch",
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        max_grad_norm=1.0,
        per_device_train_batch_size=32,
        num_train_epochs=6,
    )
    return {
        "reached": solving / lora,
        "seconds": {
            "gains": solving,
            "gains_to_the_optimum": optimum,
            "gains_by_trainer": gains_seconds,
            "path_of_strengths": path,
            "encoding": encoding,
            "lora": lora,
        },
        "iterations": needed,
        "validation_accuracy": {
            "gains": score(needed),
            "gains_to_the_optimum": score(500),
            "gains_by_trainer": wanted,
            "lora": lora_accuracy,
        },
        "note": "the path of strengths, which chose the ridge, and the encoding come on top",
    }


def synthetic(count: int, model: PeftModel) -> Coordinates:
    """Random coordinates of the real size, no forward."""
    state = readout_state(model)
    torch.manual_seed(2)
    c = torch.randn(count, len(state.directions)) * state.directions.norm(dim=1)
    return Coordinates(torch.randn(count, 512), torch.randint(100, (count,)), c, state)


def fitting_step() -> Row:
    """Value and gradient from 10,000 images against reading them and three products."""
    model = get_peft_model(backbone(), ResiDualConfig())
    rows, classifier = synthetic(10_000, model), classifier_of(model)
    count, size = rows.coordinates.shape
    problem = GainProblem(classifier, rows, Objective())
    gains = 1 + 0.1 * torch.randn(size)
    other = torch.empty_like(rows.coordinates)
    taken, copy = fastest(
        4, lambda: problem.value_and_gradient(gains), lambda: other.copy_(rows.coordinates)
    )
    flops = 2 * count * (2 * size * 512 + 512 * 100)
    ideal = copy / 2 + flops / gemm_rate()
    return {
        "reached": taken / ideal,
        "seconds": [taken, ideal],
        "setting": f"{count} images, K = {size}, d = 512, 100 classes, normalized",
    }


def jpegs(folder: Path, count: int) -> Dataset:
    """Photo-sized JPEG files of smooth noise."""
    from PIL import Image as Pillow

    rng, paths = np.random.default_rng(0), []
    for index in range(count):
        small = rng.integers(0, 256, (24, 32, 3), np.uint8)
        path = folder / f"{index}.jpg"
        Pillow.fromarray(small).resize((500, 375), Pillow.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    features = Features({"image": Image(), "label": ClassLabel(names=["one"])})
    return Dataset.from_dict({"image": paths, "label": [0] * count}, features=features)


def encode(model: PeftModel, count: int) -> float:
    """Seconds from JPEG files to coordinates on disk."""
    with tempfile.TemporaryDirectory() as folder:
        data = ProcessedImages(jpegs(Path(folder), count), CLIPImageProcessorPil())
        return seconds(lambda: write_coordinates(model, data, Path(folder) / "out", batch_size=16))


def encoding(dtype: torch.dtype = torch.float32) -> Row:
    """Operations of the model per second, from JPEG files to coordinates on disk."""
    model = get_peft_model(backbone().to(dtype), ResiDualConfig()).eval()
    count, images = 64, pixels(16).to(dtype)
    encode(model, 16)
    taken = min(encode(model, count) for _ in range(3))
    with torch.inference_mode():
        (plain,) = fastest(3, lambda: run_tower(model.base_model.model, images))
    rate = gemm_rate(dtype)
    return {
        "reached": FLOPS_PER_IMAGE * count / taken / rate,
        "images_per_second": count / taken,
        "gemm_gflops": rate / 1e9,
        "forward_alone": FLOPS_PER_IMAGE * 16 / plain / rate,
        "dtype": str(dtype).removeprefix("torch."),
    }


def encoding_bfloat16() -> Row:
    """The same in bfloat16, and what that does to the accuracy of a fit on handwriting."""
    row = encoding(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        task = handwriting_task(load_backbone())
        model = get_peft_model(task.backbone.model.to(dtype), ResiDualConfig())
        splits = [
            [{**batch, "pixel_values": batch["pixel_values"].to(dtype)} for batch in part]
            for part in (task.train, task.validation, task.test)
        ]
        train = collect_with_basis(model, splits[0])
        validation, test = (collect_coordinates(model, part) for part in splits[1:])
        classifier = task.classifier(model)
        linear = Objective(normalized=False)
        strength = strength_path(classifier, train, validation, objective=linear).best
        fit = solve_gains(classifier, train, objective=replace(linear, strength=strength))
        logits = classifier.logits(test.adapted(fit.gains.float()))
        name = f"test_accuracy_{str(dtype).removeprefix('torch.')}"
        row[name] = accuracy(logits, test.labels)
    return row


def whole_fit() -> Row:
    """Encoding, path of strengths and the fit of 10,000 images against the encoding alone."""
    model = get_peft_model(backbone(), ResiDualConfig()).eval()
    encode(model, 16)
    one = min(encode(model, 32) for _ in range(2)) / 32
    rows, classifier = synthetic(10_000, model), classifier_of(model)
    held = synthetic(1_000, model)
    linear = Objective(normalized=False)
    started = time.perf_counter()
    strength = strength_path(classifier, rows, held, objective=linear).best
    chosen = Objective(normalized=False, strength=strength)
    solve_gains(classifier, rows, objective=chosen)
    fitting = time.perf_counter() - started
    return {
        "reached": 1 + fitting / (10_000 * one),
        "fitting_seconds": fitting,
        "encoding_seconds": 10_000 * one,
        "note": "encoding measured on 32 images and multiplied; the fit on random coordinates",
    }


def inference(batch: int, rounds: int) -> Row:
    """A forward with a readout adapter against the base model's."""
    model, images = get_peft_model(backbone(), ResiDualConfig()).eval(), pixels(batch)
    plain = over_the_same_weights(model)
    with torch.inference_mode():
        base, adapted = fastest(
            rounds, lambda: run_tower(plain, images), lambda: run_tower(model, images)
        )
    return {"reached": adapted / base, "milliseconds": [adapted * 1e3, base * 1e3]}


def merged() -> Row:
    """A merged stream-mode model against the base model."""
    images = pixels(4)
    model = get_peft_model(backbone(), ResiDualConfig(mode="stream", gain_init="normal"))
    whole = model.merge_and_unload().eval()
    plain = over_the_same_weights(whole)
    same = [type(module).__name__ for module in whole.modules()] == [
        type(module).__name__ for module in plain.modules()
    ]
    with torch.inference_mode():
        base, after = fastest(
            25, lambda: run_tower(plain, images), lambda: run_tower(whole, images)
        )
    return {"reached": after / base, "same_modules": same, "batch": 4}


def hundred_tasks() -> Row:
    """From `many_tasks.json`, which `many_tasks.py` wrote."""
    found = json.loads((Path(__file__).parent / "many_tasks.json").read_text())
    ratio = found["heads and MLPs"]["ratio"]["100"]
    return {"reached": ratio, "batch": found["batch"], "heads_only": found["heads"]["ratio"]["100"]}


def bytes_saved(config: Any) -> int:
    """Size of the file of an adapter's weights."""
    with tempfile.TemporaryDirectory() as folder:
        model = get_peft_model(backbone(), config)
        model.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def gains_bytes() -> Row:
    """The gains alone against LoRA."""
    with tempfile.TemporaryDirectory() as folder:
        SpectralBasis.from_weights(backbone()).save_pretrained(folder)
        ours = bytes_saved(ResiDualConfig(basis=folder, save_basis=False))
    lora = bytes_saved(LORA)
    return {"reached": ours / lora, "bytes": [ours, lora]}


def adapter_bytes() -> Row:
    """Gains and basis against LoRA, for the choices of units and components."""
    lora = bytes_saved(LORA)
    choices = {
        "heads and MLPs": {"units": ("head", "mlp")},
        "heads": {"units": ("head",)},
        "heads, 16 components each": {"units": ("head",), "components": 16},
        "heads and MLPs, 16 components each": {"components": 16},
    }
    found = {name: bytes_saved(ResiDualConfig(**choice)) for name, choice in choices.items()}
    return {"reached": found["heads and MLPs"] / lora, "bytes": found, "lora_bytes": lora}


@dataclass(frozen=True)
class Target:
    """A row of the table."""

    what: str
    against: str
    asked: str
    measure: Callable[[], Row]

    def holds(self, reached: float) -> bool:
        """Whether it was reached."""
        sign, _, number = self.asked.partition(" ")
        limit = float(number)
        return reached >= limit if sign == "≥" else reached <= limit


TARGETS = {
    "basis": Target("basis fitting, images/s", "plain forward", "≥ 0.97", basis_speed),
    "basis_memory": Target(
        "basis fitting, memory", "itself, a tenth of the images", "≤ 1.05", basis_memory
    ),
    "moments": Target(
        "moments and eigenvectors, time", "full SVD per head of what is stored", "≤ 0.02", moments
    ),
    "moments_memory": Target(
        "moments and eigenvectors, memory", "the same", "≤ 0.02", moments_memory
    ),
    "step": Target("Trainer step, images/s", "LoRA r16 on q, v", "≥ 2.2", step),
    "step_memory": Target(
        "memory above the model in that step", "the same LoRA", "≤ 0.25", step_memory
    ),
    "fit": Target(
        "gains from coordinates, time", "LoRA r16, bundled model", "≤ 0.00333", fit_against_lora
    ),
    "fitting_step": Target("a fitting step", "reading c once, three products", "≤ 2", fitting_step),
    "encoding": Target("encoding, FLOP/s from JPEG files", "GEMM rate", "≥ 0.6", encoding),
    "encoding_bfloat16": Target(
        "the same in bfloat16", "GEMM rate in bfloat16", "≥ 0.6", encoding_bfloat16
    ),
    "whole_fit": Target("whole fit of 10,000 images", "one encoding pass", "≤ 1.05", whole_fit),
    "inference_1": Target("inference, batch 1", "base model", "≤ 1.05", lambda: inference(1, 40)),
    "inference_32": Target("inference, batch 32", "base model", "≤ 1.02", lambda: inference(32, 5)),
    "merged": Target("inference, merged (stream mode)", "base model", "≤ 1.005", merged),
    "tasks": Target("100 tasks on one batch", "one forward", "≤ 1.05", hundred_tasks),
    "gains_bytes": Target("adapter bytes, gains alone", "LoRA r16", "≤ 0.025", gains_bytes),
    "adapter_bytes": Target("adapter bytes, self-contained", "LoRA r16", "≤ 1", adapter_bytes),
}


def rounded(value: Any) -> Any:
    """Four significant digits are more than such a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def apart(name: str, **environment: str) -> Row:
    """A row, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--here", name],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def processor() -> str:
    """What the processor calls itself, and whether it multiplies in bfloat16."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in about.splitlines() if "model name" in line]
    name = names[0] if names else platform.processor() or platform.machine()
    return name + (", bfloat16" if "avx512_bf16" in about or "amx_bf16" in about else "")


def machine() -> Row:
    """What this ran on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


HEADERS = ("what", "against", "asked", "reached", "holds")


def table(results: dict[str, Row]) -> list[tuple[str, ...]]:
    """What was reached beside what was asked."""
    rows = []
    for name, target in TARGETS.items():
        if name in results["rows"]:
            reached = results["rows"][name]["reached"]
            holds = "yes" if target.holds(reached) else "no"
            rows.append((target.what, target.against, target.asked, f"{reached:.3g}", holds))
    return rows


def show(results: dict[str, Row]) -> None:
    """Print the table."""
    shown = Table(*HEADERS)
    for row in table(results):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    console.print(results["machine"])


def main() -> None:
    """Measure the rows that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*TARGETS, []], help="rows to measure")
    parser.add_argument("--here", choices=list(TARGETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.here:
        print(json.dumps(rounded(TARGETS[options.here].measure())))
        return
    results = json.loads(OUT.read_text()) if OUT.is_file() else {"rows": {}}
    results["machine"] = machine()
    for name in options.rows or TARGETS:
        try:
            results["rows"][name] = apart(name)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            continue
        results["table"] = table(results)
        write_json(OUT, results)
        print(name, results["rows"][name], flush=True)
    show(results)


if __name__ == "__main__":
    main()
