"""From names to an adapter on disk, and from an adapter on disk to its scores."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer

from .analysis import TextDictionary
from .anatomy import find_tower
from .backbones import Backbone, load_backbone
from .cards import CardFacts
from .coordinates import (
    Coordinates,
    collect_coordinates,
    collect_readouts,
    collect_with_basis,
)
from .data import ImageData, batches, load_data, with_progress
from .decomposition import unadapted
from .describing import dictionary_if_any
from .errors import ResiDualError
from .evaluation import Evaluation, evaluate
from .hub import REPORT, RUN_DIRECTORY
from .objectives import Objective
from .places import check_place
from .prompts import DEFAULT_TEMPLATES
from .recording import record_run, run_facts
from .solvers import solve_gains, strength_path
from .training import trainer_kwargs, training_arguments
from .tuner import ResiDualConfig, fit_bases, gains_of
from .zero_shot import ZeroShotClassifier


@dataclass(frozen=True)
class FitReport:
    """What a fit gave and took.

    Attributes:
        zero_shot: metrics on the test images without the adapter; where classes are the means of
            their training images, with those.
        adapted: metrics on them with it.
        encoding_seconds: the pass over training and validation images; for the Trainer's way, the
            pass that fits the bases.
        fitting_seconds: what came after it: the gains.
        strength: of the ridge, as chosen on the validation images; None for the Trainer's way.
    """

    zero_shot: dict[str, float]
    adapted: dict[str, float]
    encoding_seconds: float
    fitting_seconds: float
    strength: float | None
    start: str = "zero-shot"  # or "class means": what the classes are before the adapter


@dataclass(frozen=True)
class _Fitted:
    """A fit's report, and what its record is made of."""

    report: FitReport
    before: Evaluation
    after: Evaluation
    rows: Coordinates | None  # of the test images
    method: str
    images_read: int


def fit_adapter(
    model: str,
    data: Any,
    out: str | os.PathLike[str],
    *,
    templates: Sequence[str] | None = None,
    config: ResiDualConfig | None = None,
    trainer: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    license: str | None = None,
    words: str | os.PathLike[str] | Iterable[str] | None = None,
) -> FitReport:
    """Fit an adapter to labelled images and save it with its classes and a model card.

    One pass over the training images gives bases and coordinates; then the convex objective is
    solved (`solve_gains`) with the strength of its ridge chosen on the validation images. In `run`
    beside the adapter lies a `RunRecord`: numbers and small pictures that a report is drawn from.
    Data with several labels per image are fitted with a sigmoid per class, and leave no record.

    Args:
        model: the directory or Hub id of a CLIP or another model with a known image tower; without
            a text tower (or with `readout` in `config`) classes are the means of their training
            images.
        data: what `load_data` takes.
        out: where to save.
        templates: prompts with `{}`; the default ones when None.
        config: the adapter's; the default when None, with as many components as a head has
            dimensions under an attention pooling (SigLIP).
        trainer: fit with the HF Trainer instead, forward and backward for every batch and epoch,
            on the normalized loss.
        image_column: of the data, found when None.
        label_column: likewise.
        seed: of the splits; with `trainer` of the order of the images, too.
        license: of the adapter, for its card.
        words: texts to describe the strongest components with, a file or a list; as for
            `dictionary_for` when None, nothing is described when empty.

    Raises:
        ResiDualError: a place that cannot be written (tried before anything is read), bad data, a
            model that is not there, or a config in stream mode without `trainer`.
    """
    check_place(out)
    if config is not None and config.mode == "stream" and not trainer:
        raise ResiDualError(
            "an adapter in stream mode has no coordinates to fit from; use trainer=True."
        )
    images = load_data(data, image_column=image_column, label_column=label_column, seed=seed)
    for split in ("train", "validation", "test"):
        images[split]  # says which one is missing
    whole = config is not None and (config.mode == "stream" or config.granularity == "unit")
    described = not (whole or images.multi_label)
    if words and not described:
        raise ResiDualError(
            "words are for the components of a report: data with several labels per image have no "
            "report, stream mode and one gain per unit no components there; leave them out."
        )
    backbone = load_backbone(model)
    config = _settled(config, backbone, seed)
    by_texts = backbone.tokenizer is not None and config.readout is None
    if not by_texts:
        check_without_texts(backbone, images, templates, words)
    described = described and by_texts
    dictionary = dictionary_if_any(backbone, words) if described else None  # before any work
    classifier = _classifier(backbone, images, templates, config, by_texts)
    fit = _by_trainer if trainer else _from_coordinates
    done = fit(classifier, images, backbone, config, seed)
    if not by_texts:
        done = replace(done, report=replace(done.report, start="class means"))
    card = _facts_of(data, images, done.report, seed, license)
    classifier.save_pretrained(out, card=card)
    _leave_record(classifier, images, Path(out), done, card, dictionary)
    return done.report


def _settled(config: ResiDualConfig | None, backbone: Backbone, seed: int) -> ResiDualConfig:
    """The adapter's config: the default when None.

    Under an attention pooling a unit has as many directions as the readout is wide, of which the
    default keeps as many as a head has dimensions.
    """
    if config is not None:
        return config
    tower = find_tower(backbone.model)
    return ResiDualConfig(seed=seed, components=tower.head_dim if tower.pools > 1 else None)


def check_without_texts(backbone: Backbone, images: ImageData, templates: Any, words: Any) -> None:
    """Refuse what only class names as texts can do."""
    kind = type(backbone.model).__name__
    why = (
        f"{kind} has no text tower"
        if backbone.tokenizer is None
        else ("the text tower is not trained to match the mean of tokens")
    )
    if templates or words:
        raise ResiDualError(
            f"{why}: classes are the means of their training images, so leave out the "
            f"{'templates' if templates else 'words'}."
        )
    if images.multi_label:
        raise ResiDualError(
            f"{why}, and an image with several labels belongs to no one class's mean: take a model "
            "with a text tower, such as a CLIP, for data with several labels per image."
        )


def _classifier(
    backbone: Backbone,
    images: ImageData,
    templates: Sequence[str] | None,
    config: ResiDualConfig,
    by_texts: bool,
) -> ZeroShotClassifier:
    """Classes from their names, or from the means of their training images."""
    if by_texts:
        return ZeroShotClassifier.from_text(
            backbone.model,
            backbone.tokenizer,
            images.class_names,
            templates or DEFAULT_TEMPLATES,
            image_processor=backbone.image_processor,
            multi_label=images.multi_label,
        )
    model = get_peft_model(backbone.model, config)  # which knows its readout
    train = batches(images.train, backbone.image_processor, name="the training split")
    with model.disable_adapter():
        return ZeroShotClassifier.from_class_means(
            model,
            with_progress(train, "Class means", True),
            images.class_names,
            image_processor=backbone.image_processor,
        )


def _adapted(classifier: ZeroShotClassifier, config: ResiDualConfig) -> PeftModel:
    """The classifier's model with the adapter in."""
    if not isinstance(classifier.model, PeftModel):
        classifier.model = get_peft_model(classifier.model, config)
    return classifier.model


def _leave_record(
    classifier: ZeroShotClassifier,
    images: ImageData,
    out: Path,
    done: _Fitted,
    card: CardFacts,
    dictionary: TextDictionary | None,
) -> None:
    (out / REPORT).unlink(missing_ok=True)  # that of an earlier fit would speak of another adapter
    if images.multi_label:  # a report counts images that are right or wrong
        shutil.rmtree(out / RUN_DIRECTORY, ignore_errors=True)
        return
    facts = run_facts(
        classifier,
        out,
        method=done.method,
        dataset=card.dataset or "the dataset",
        splits={name: len(split) for name, split in images.splits.items()},
        seed=card.seed,
        encoding_seconds=done.report.encoding_seconds,
        fitting_seconds=done.report.fitting_seconds,
        images_read=done.images_read,
        strength=done.report.strength,
    )
    record = record_run(
        classifier, images.test, done.before, done.after, facts, done.rows, dictionary
    )
    record.save(out / RUN_DIRECTORY)


def _from_coordinates(
    classifier: ZeroShotClassifier,
    images: ImageData,
    backbone: Backbone,
    config: ResiDualConfig,
    seed: int,
) -> _Fitted:
    """Each image is read once, test images too."""
    started = time.perf_counter()
    model = _adapted(classifier, config)
    processor = backbone.image_processor
    train = collect_with_basis(
        model, batches(images.train, processor, name="the training split"), progress=True
    )
    held_out = batches(images.validation, processor, name="the validation split")
    validation = collect_coordinates(model, held_out, progress=True)
    encoded = time.perf_counter()
    bias_before = classifier.fit_bias(train.readout, train.labels) if images.multi_label else 0.0
    strength = strength_path(classifier, train, validation, progress=True).best
    loss: Any = "sigmoid" if classifier.multi_label else "softmax"
    chosen = Objective(normalized=False, loss=loss, strength=strength)
    solve_gains(classifier, train, objective=chosen, progress=True)
    fitted = time.perf_counter()
    test = batches(images.test, processor, name="the test split")
    rows = collect_coordinates(model, test, progress=True)
    with torch.no_grad():
        adapted = rows.adapted(gains_of(model).detach().cpu())
    after = _evaluated(classifier, adapted, rows.labels, classifier.logit_bias)
    before = _evaluated(classifier, rows.readout, rows.labels, bias_before)
    report = FitReport(before.metrics, after.metrics, encoded - started, fitted - encoded, strength)
    method = "one pass over the images, then a convex problem with one solution"
    return _Fitted(report, before, after, rows, method, len(train) + len(validation))


def _evaluated(
    classifier: ZeroShotClassifier, readout: torch.Tensor, labels: torch.Tensor, bias: float
) -> Evaluation:
    classifier.check_labels(labels)
    logits = classifier.scaled_cosines(readout).cpu()
    return Evaluation(classifier.class_names, logits + bias if bias else logits, labels)


def _by_trainer(
    classifier: ZeroShotClassifier,
    images: ImageData,
    backbone: Backbone,
    config: ResiDualConfig,
    seed: int,
) -> _Fitted:
    """Bases by a pass of their own, then the Trainer."""
    train = batches(images.train, backbone.image_processor, name="the training split")
    if images.multi_label:
        seen = collect_readouts(backbone.model, train, progress=True)
        classifier.fit_bias(seen.readout, seen.labels)
    with unadapted(classifier.model):
        before = evaluate(classifier, images.test, name="the test split", progress=True)
    started = time.perf_counter()
    _adapted(classifier, config)
    fit_bases(classifier.model, train, progress=True)
    encoded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = training_arguments(folder, seed=seed, disable_tqdm=False)
        Trainer(**trainer_kwargs(classifier, images, settings)).train()
    fitted = time.perf_counter()
    after = evaluate(classifier, images.test, name="the test split", progress=True)
    rows = None
    if config.mode == "readout":
        test = batches(images.test, backbone.image_processor, name="the test split")
        rows = collect_coordinates(classifier.model, test, progress=True)
    report = FitReport(before.metrics, after.metrics, encoded - started, fitted - encoded, None)
    method = "the Hugging Face Trainer, forward and backward for every batch"
    return _Fitted(report, before, after, rows, method, len(images.train))


def _facts_of(
    data: Any, images: ImageData, report: FitReport, seed: int, license: str | None
) -> CardFacts:
    """What the card says of a fit; of a path only the end, which is all that others can use."""
    on_disk = not isinstance(data, str) or Path(data).expanduser().is_dir()
    metrics = dict(report.adapted)
    if len(images.class_names) <= 5:  # then every class is among the top five
        metrics.pop("top5_accuracy", None)
    return CardFacts(
        dataset=Path(images.source).name if on_disk else images.source,
        dataset_id=None if on_disk else data,
        metrics=metrics,
        metrics_before=report.zero_shot,
        test_images=len(images.test),
        training_data=f"{len(images.train):,} images, {len(images.validation):,} to choose by",
        seed=seed,
        license=license,
    )


def check_classes(classifier: ZeroShotClassifier, images: ImageData) -> None:
    """Refuse data with other classes than a classifier's."""
    if images.class_names != classifier.class_names:
        raise ResiDualError(
            f"wanted data with the adapter's classes ({', '.join(classifier.class_names)}), got "
            f"{', '.join(images.class_names)}; use the data that it was fitted for."
        )


def evaluate_adapter(
    adapter: str | os.PathLike[str],
    data: Any,
    *,
    split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy, top-5 accuracy and mean per-class recall of a saved adapter.

    With several labels per image those of `multi_label_metrics`.

    Arguments are those of `fit_adapter`; `split` names the images to measure on.

    Raises:
        ResiDualError: bad data, other classes, or an adapter that is not there.
    """
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    images = load_data(data, image_column=image_column, label_column=label_column, seed=seed)
    check_classes(classifier, images)
    return evaluate(classifier, images[split], name=split, progress=True).metrics
