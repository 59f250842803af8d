"""From names to an adapter on disk."""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...analysis import TextDictionary
from ...analysis.describing import dictionary_if_any
from ...classifiers.backbones import Backbone, load_backbone
from ...classifiers.prompts import DEFAULT_TEMPLATES
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, load_data
from ...data.labels import ONE_LABEL, check_same
from ...data.survey import survey
from ...errors import ResiDualError, printable
from ...hub.places import check_place
from ...solvers.choice import AUTO, check_methods
from ...towers.registry import find_tower
from ...tuner import ResiDualConfig
from .keeping import Keeping, keeping
from .reading import Options, Pass, check_skipped, settings_of
from .report import FitReport, findings_of
from .saving import Fitted, digests_of, facts_of, save
from .ways import Done, Task, by_trainer, check_statistics, check_way, from_coordinates

logger = logging.getLogger(__name__)


def fit_adapter(
    model: str,
    data: Any,
    out: str | os.PathLike[str],
    *,
    templates: Sequence[str] | None = None,
    config: ResiDualConfig | None = None,
    method: str = AUTO,
    balanced: bool = False,
    trainer: bool = False,
    keep_statistics: bool | str = False,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    license: str | None = None,
    words: str | os.PathLike[str] | Iterable[str] | None = None,
    max_bad: float = 0.05,
    strict: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> FitReport:
    """Fit an adapter to labelled images and save it with its classes and a model card.

    One pass over the images gives bases (of the training images) and coordinates; then everything
    that may be fitted on them takes seconds, so that all of it is tried (`solvers.choice`): gains,
    class heads on coordinates, linear probes on the embedding. What does best on training and
    validation images that it did not see is kept. In `run` beside the adapter lies a `RunRecord`:
    numbers and small pictures that a report is drawn from. Data with several labels per image are
    fitted with a sigmoid per class, and leave no record.

    How the images were shared out is saved with the adapter (`classifier.split`), and which it was
    fitted on (`classifier.fitted_on`, never pushed): `evaluate_adapter` takes it from there.

    What is read is kept in `.OUT.reading` beside the output until the fit has succeeded: the same
    call goes on where an interrupted one stopped, and gives the same adapter. An adapter that is
    there already stays whole until the new one takes its place.

    Args:
        model: the directory or Hub id of a CLIP or another model with a known image tower; without
            a text tower (or with `readout` in `config`) classes are the means of their training
            images.
        data: what `load_data` takes.
        out: where to save.
        templates: prompts with `{}`; the default ones when None.
        config: the adapter's; the default when None, with as many components as a head has
            dimensions under an attention pooling.
        method: a name of `METHODS`; "auto" tries all of them, and takes the one that does best on
            training images it did not see (never on test images).
        balanced: every class counts alike, however few its images.
        trainer: fit gains with the HF Trainer instead, forward and backward for every batch and
            epoch, on the normalized loss.
        keep_statistics: keep the sums of a ridge head's images in `run/statistics.safetensors`, so
            that `ZeroShotClassifier.update` can add images to it, or take some out, without the
            others. They are data: class means and a covariance (`KeptStatistics` says what that
            reveals, and how much it takes: 1 GB for 15,504 coordinates), and are never pushed. The
            ridge is then fitted to labels alone, not to what the texts leave of them, which costs
            up to some points where the texts are good and images few.
            "per class" keeps the covariance of each class, too, so that one can be removed without
            its images.
        image_column: of the data, found when None.
        label_column: likewise.
        seed: of the splits; with `trainer` of the order of the images, too.
        license: of the adapter, for its card.
        words: texts to describe the strongest components with, a file or a list; as for
            `dictionary_for` when None, nothing is described when empty.
        max_bad: the share of the images that may be unreadable; three always may. They are left
            out, named in the report and listed in `skipped.csv` beside the adapter.
        strict: an unreadable image is an error.
        batch_size: images per forward pass.
        num_workers: processes that decode images; None for as many as suit the machine.

    Raises:
        ResiDualError: a place that cannot be written (tried before anything is read), bad data, too
            many unreadable images, a model that is not there, or a config in stream mode without
            `trainer`.
        KeyboardInterrupt: says what was kept.
    """
    target = check_place(out)
    check_way(config, trainer)
    check_methods([] if method == AUTO else [method])
    check_statistics(keep_statistics, method, trainer)
    with keeping(target) as kept:
        try:
            images = load_data(
                data,
                image_column=image_column,
                label_column=label_column,
                seed=seed,
                max_bad=max_bad,
                strict=strict,
                progress=True,
            )
            options = Options(batch_size, num_workers, max_bad, strict, _total(images))
            options.check(images)
            for line in survey(images).summary():
                logger.info("%s", printable(line))
            images, repeated = without_repeated(images)
            _check_words(config, images, words)
            backbone = load_backbone(model)
            task = _task(backbone, images, templates, config, seed, method, balanced, trainer)
            task = replace(task, keep_statistics=keep_statistics)
            dictionary = _dictionary(task, images, words)  # before any work
            fitted = _fitted(task, images, kept, options, repeated)
            facts = facts_of(data, fitted, seed, license)
            save(fitted, target, facts, dictionary)
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(_kept_in_words(kept)) from stopped
    return fitted.report


def fit_classifier(
    backbone: Backbone,
    images: ImageData,
    *,
    templates: Sequence[str] | None = None,
    config: ResiDualConfig | None = None,
    method: str = AUTO,
    balanced: bool = False,
    trainer: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Fitted:
    """What `fit_adapter` does, from objects and with nothing saved.

    What is read lies in a temporary directory meanwhile.

    Args:
        backbone: of `load_backbone`.
        images: of `load_data`.
        templates: as for `fit_adapter`, like all that follows.
        config: likewise.
        method: likewise.
        balanced: likewise.
        trainer: likewise.
        seed: likewise.
        batch_size: likewise.
        num_workers: likewise.

    Raises:
        ResiDualError: as `fit_adapter`.
    """
    check_way(config, trainer)
    check_methods([] if method == AUTO else [method])
    images, repeated = without_repeated(images)
    task = _task(backbone, images, templates, config, seed, method, balanced, trainer)
    options = Options(batch_size, num_workers, total=_total(images))
    with tempfile.TemporaryDirectory() as place, keeping(Path(place) / "adapter") as kept:
        return _fitted(task, images, kept, options, repeated)


def compare_methods(
    model: str,
    data: Any,
    *,
    templates: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    balanced: bool = False,
    seed: int = 0,
    max_bad: float = 0.05,
    strict: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> FitReport:
    """Fit with every method and save nothing; `FitReport.methods` has what each gave.

    Arguments and errors are those of `fit_adapter`.
    """
    images = load_data(
        data,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        max_bad=max_bad,
        strict=strict,
        progress=True,
    )
    check_skipped(images.skipped, max_bad, _total(images), images.source, strict)
    return fit_classifier(
        load_backbone(model),
        images,
        templates=templates,
        balanced=balanced,
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
    ).report


def _total(images: ImageData) -> int:
    return sum(map(len, images.splits.values())) + len(images.skipped)


def _fitted(
    task: Task, images: ImageData, kept: Keeping, options: Options, repeated: int
) -> Fitted:
    read = Pass(images, task.backbone.image_processor, kept, options)
    done = (by_trainer if task.trainer else from_coordinates)(task, read)
    start = "class means" if task.classifier is None else "zero-shot"
    report = _report(done, read.images, repeated, start)
    return Fitted(done.classifier, report, read.images, done)


def without_repeated(images: ImageData) -> tuple[ImageData, int]:
    """Test images that are training or validation images, too, are no test; how many there were.

    Raises:
        ResiDualError: a split is missing, or no test image is left.
    """
    for split in ("train", "validation", "test"):
        images[split]  # says which one is missing
    known = {digest for split in ("train", "validation") for digest in digests_of(images, split)}
    rows = [row for row, digest in enumerate(digests_of(images, "test")) if digest in known]
    if len(rows) == len(images.test):
        raise ResiDualError(
            f"all {len(rows)} test images of '{images.source}' are training or validation images, "
            "too, so that no score would mean anything; bring other test images."
        )
    return (images.without("test", rows) if rows else images), len(rows)


def _task(
    backbone: Backbone,
    images: ImageData,
    templates: Sequence[str] | None,
    config: ResiDualConfig | None,
    seed: int,
    method: str,
    balanced: bool,
    trainer: bool,
) -> Task:
    """What is to be fitted."""
    check_methods([] if method == AUTO else [method], images.multi_label)
    config = _settled(config, backbone, seed)
    by_texts = backbone.tokenizer is not None and config.readout is None
    if not by_texts:
        check_without_texts(backbone, images, templates)
    classifier = None
    if by_texts:
        classifier = ZeroShotClassifier.from_text(
            backbone.model,
            backbone.tokenizer,
            images.class_names,
            templates or DEFAULT_TEMPLATES,
            image_processor=backbone.image_processor,
            multi_label=images.multi_label,
        )
    settings = {
        "settings": settings_of(config),
        "templates": list(classifier.templates) if classifier else [],
        "seed": seed,
        "way": "trainer" if trainer else "coordinates",
    }
    return Task(backbone, classifier, config, settings, seed, method, balanced, trainer)


def _undescribed(config: ResiDualConfig | None, images: ImageData) -> bool:
    """Whether there are no components, or no report, for words to describe."""
    whole = config is not None and (config.mode == "stream" or config.granularity == "unit")
    return whole or images.multi_label


def _check_words(config: ResiDualConfig | None, images: ImageData, words: Any) -> None:
    if words and _undescribed(config, images):
        raise ResiDualError(
            "words are for the components of a report: data with several labels per image have no "
            "report, stream mode and one gain per unit no components there; leave them out."
        )


def _dictionary(task: Task, images: ImageData, words: Any) -> TextDictionary | None:
    """The texts that components are described with; None where nothing is described."""
    if _undescribed(task.config, images):
        return None
    if task.classifier is None:
        if words:
            check_without_texts(task.backbone, images, None, words)
        return None
    return dictionary_if_any(task.backbone, words)


def _settled(config: ResiDualConfig | None, backbone: Backbone, seed: int) -> ResiDualConfig:
    """The adapter's config: the default when None.

    Under an attention pooling a unit has as many directions as the readout is wide, of which the
    default keeps as many as a head has dimensions.
    """
    if config is not None:
        return config
    tower = find_tower(backbone.model)
    return ResiDualConfig(seed=seed, components=tower.head_dim if tower.pools > 1 else None)


def check_without_texts(
    backbone: Backbone, images: ImageData, templates: Any, words: Any = None
) -> None:
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
    what = (
        "such an image belongs to no one class's mean, so take a model with texts, such as a CLIP"
    )
    check_same(ONE_LABEL, images.labelling, f"{why}, and {what}")


def _report(done: Done, images: ImageData, repeated: int, start: str) -> FitReport:
    largest = images.labelling.chance(done.train_labels, done.after.labels)
    return FitReport(
        zero_shot=done.before.metrics,
        adapted=done.after.metrics,
        encoding_seconds=done.encoding_seconds,
        fitting_seconds=done.fitting_seconds,
        strength=done.strength,
        start=start,
        splits={split: len(rows) for split, rows in images.splits.items()},
        classes=len(images.class_names),
        interval=done.after.interval,
        train=done.train,
        largest_class=largest,
        repeated=repeated,
        skipped=images.skipped,
        findings=(*done.notes, *findings_of(done.before, done.after, done.train, largest, start)),
        methods=done.table,
    )


def _kept_in_words(kept: Keeping) -> str:
    if not kept.holds_images:
        return "interrupted before any image was read."
    return (
        f"interrupted; what was read is kept in '{kept.folder}', and the same command goes on "
        "where it stopped."
    )
