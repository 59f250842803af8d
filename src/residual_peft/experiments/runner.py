"""Methods by name; one of them on one task with several seeds -> rows, and what these say."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from peft import get_peft_model
from safetensors.torch import save
from torch import Tensor, nn

from ..classifiers.backbones import Backbone, load_image_tower
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.metrics import accuracy
from ..errors import ResiDualError
from ..solvers import fit_gains, fit_linear, linear_readout
from ..solvers.coordinates import collect_coordinates, collect_readouts
from ..solvers.training import LEARNING_RATE
from ..tuner import ResiDualConfig, fit_bases, gains_of, restart_gains
from .lora import LoraSettings, adapter_bytes, fit_lora

Report = Callable[[str], object]
# The best on the demo's validation images (benchmarks/rates.json). The paper takes 1e-3 for the
# linear map and RD^y, on far larger data; over heads and MLPs its own rate is the best here too.
LINEAR_LEARNING_RATE = 1e-2
RD_Y_LEARNING_RATE = 0.8
LORA_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Method:
    """One way to adapt a model."""

    name: str  # as in `results.json`
    label: str  # for people
    kind: str  # "none", "gains", "linear" or "lora"
    config: Callable[[int], ResiDualConfig] | None = None  # seed -> the adapter's config, for gains
    learning_rate: float = LEARNING_RATE  # of the optimizer


def _paper(name: str) -> Callable[[int], ResiDualConfig]:
    return lambda seed: ResiDualConfig.paper(name, seed=seed)


METHODS = {
    method.name: method
    for method in (
        Method("zero_shot", "zero-shot", "none"),
        Method("coarse", "coarse (paper)", "gains", _paper("coarse")),
        Method("residual_star", "ResiDual* (paper)", "gains", _paper("residual_star")),
        Method("residual", "ResiDual (paper)", "gains", _paper("residual")),
        Method("default", "ResiDual, our default", "gains", lambda seed: ResiDualConfig(seed=seed)),
        Method("rd_y", "RD^y (paper)", "gains", _paper("rd_y"), RD_Y_LEARNING_RATE),
        Method("linear", "linear map", "linear", learning_rate=LINEAR_LEARNING_RATE),
        Method("lora", "LoRA r=8 on q, v", "lora", learning_rate=LORA_LEARNING_RATE),
    )
}
"""name -> method, in the order of a table."""


@dataclass(frozen=True)
class Row:
    """One method with one seed."""

    method: str
    seed: int
    test_accuracy: float
    trainable_parameters: int
    fit_seconds: float
    adapter_bytes: int


@dataclass(frozen=True)
class Summary:
    """One method over its seeds."""

    method: str
    accuracy: float
    spread: float
    parameters: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Task:
    """Images ready for the model, by split, and what they are classified as."""

    backbone: Backbone  # the model to adapt; an adapter that was put in is taken out again
    class_names: tuple[str, ...]  # one per label
    templates: tuple[str, ...]  # prompt templates
    # batches of `pixel_values` and `labels` to fit; may be iterated again and again
    train: Iterable[dict[str, Tensor]]
    validation: Iterable[dict[str, Tensor]]  # to choose by
    test: Iterable[dict[str, Tensor]]  # to report on; never used for a choice
    basis: Iterable[dict[str, Tensor]]  # batches of `pixel_values` to fit the bases on

    def classifier(self, model: nn.Module | None = None) -> ZeroShotClassifier:
        """The task's classifier around the backbone's model or another with the same readout."""
        return ZeroShotClassifier.from_text(
            self.backbone.model if model is None else model,
            self.backbone.tokenizer,
            self.class_names,
            self.templates,
            text_model=self.backbone.model,
            image_processor=self.backbone.image_processor,
        )


def run_method(
    task: Task,
    method: Method,
    seeds: Sequence[int] = (0,),
    *,
    report: Report = lambda text: None,
    keep: Path | None = None,
    lora: LoraSettings | None = None,
) -> list[Row]:
    """Fit a method on a task, once per seed, and measure it on the test images: a row per seed.

    An adapter is measured by running the adapted model. What a method needs once for all seeds (the
    passes over the images) counts in full for each of them. Zero-shot has one row, and no seed. The
    first seed's adapter with its classes is saved where `keep` says; LoRA has the method's learning
    rate unless it is told.

    Raises:
        ResiDualError: an unknown kind of method, or data that the fit refuses.
    """
    if method.kind == "none":
        report("classifying")
        return [Row(method.name, 0, _test_accuracy(task.classifier(), task), 0, 0.0, 0)]
    if method.kind == "gains":
        return _run_gains(task, method, seeds, report, keep)
    if method.kind == "linear":
        return _run_linear(task, method, seeds, report)
    if method.kind == "lora":
        settings = lora or LoraSettings(learning_rate=method.learning_rate)
        return [_run_lora(task, method, seed, settings, report) for seed in seeds]
    raise ResiDualError(
        f"wanted a method of kind none, gains, linear or lora; got {method.kind!r}."
    )


def _run_gains(
    task: Task, method: Method, seeds: Sequence[int], report: Report, keep: Path | None
) -> list[Row]:
    """Bases and coordinates once; gains once per seed."""
    assert method.config is not None
    started = time.perf_counter()
    model = get_peft_model(task.backbone.model, method.config(seeds[0]))
    try:
        report("fitting the bases")
        fit_bases(model, task.basis)
        classifier = task.classifier(model)
        report("reading the images")
        train = collect_coordinates(model, task.train)
        validation = collect_coordinates(model, task.validation)
        once, rows = time.perf_counter() - started, []
        for seed in seeds:
            report(f"fitting the gains, seed {seed}")
            restart_gains(model, seed)
            fit = fit_gains(
                classifier, train, validation, learning_rate=method.learning_rate, seed=seed
            )
            score = _test_accuracy(classifier, task)
            size = adapter_bytes(model)
            rows.append(
                Row(method.name, seed, score, gains_of(model).numel(), once + fit.seconds, size)
            )
            if keep is not None and seed == seeds[0]:
                classifier.save_pretrained(keep)
        return rows
    finally:
        model.unload()


def _run_linear(task: Task, method: Method, seeds: Sequence[int], report: Report) -> list[Row]:
    """The paper's linear map on cached readouts."""
    started = time.perf_counter()
    classifier = task.classifier()
    report("reading the images")
    train = collect_readouts(task.backbone.model, task.train)
    validation = collect_readouts(task.backbone.model, task.validation)
    once = time.perf_counter() - started
    test, rows = collect_readouts(task.backbone.model, task.test), []
    for seed in seeds:
        report(f"fitting the map, seed {seed}")
        fit = fit_linear(
            classifier, train, validation, learning_rate=method.learning_rate, seed=seed
        )
        logits = classifier.logits(linear_readout(fit, test.readout))
        size = len(save(fit.parameters, {}))  # as `write_tensors` has them
        count = sum(tensor.numel() for tensor in fit.parameters.values())
        score = accuracy(logits, test.labels)
        rows.append(Row(method.name, seed, score, count, once + fit.seconds, size))
    return rows


def _run_lora(task: Task, method: Method, seed: int, settings: LoraSettings, report: Report) -> Row:
    """LoRA on the image tower, by the HF Trainer with a backward pass through the backbone."""
    classifier = task.classifier(load_image_tower(task.backbone.name))
    report(f"training, seed {seed}")
    started = time.perf_counter()
    model = fit_lora(classifier, task.train, task.validation, settings, seed, report)
    seconds = time.perf_counter() - started
    count, _ = model.get_nb_trainable_parameters()
    score = _test_accuracy(classifier, task)
    return Row(method.name, seed, score, count, seconds, adapter_bytes(model))


@torch.no_grad()
def _test_accuracy(classifier: ZeroShotClassifier, task: Task) -> float:
    passed = classifier.classified(task.test, labelled=True)
    told = [(logits, seen.labels) for seen, logits in passed]
    return accuracy(*map(torch.cat, zip(*told, strict=True)))


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Mean accuracy and its sample standard deviation per method, in the order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return [
        Summary(
            method=name,
            accuracy=mean(row.test_accuracy for row in group),
            spread=stdev(row.test_accuracy for row in group) if len(group) > 1 else 0.0,
            parameters=round(mean(row.trainable_parameters for row in group)),
            seconds=mean(row.fit_seconds for row in group),
            bytes=round(mean(row.adapter_bytes for row in group)),
        )
        for name, group in groups.items()
    ]
