"""From names to an adapter on disk."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...analysis.describing import dictionary_if_any
from ...classifiers.backbones import Backbone
from ...classifiers.prompts import DEFAULT_TEMPLATES
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData
from ...data.class_list import CLASSES
from ...data.class_names import readable, spoken
from ...data.labels import ONE_LABEL, check_same
from ...data.survey import survey
from ...errors import ResiDualError, printable, some
from ...hub.directories import DEMO_MODEL
from ...hub.places import check_place
from ...solvers.choice import AUTO, check_methods
from ...tuner import ResiDualConfig
from .checks import check_apart, check_sets_of
from .reading import Keeping, Pass, digest_of_json, keeping
from .recipe import Recipe
from .report import FitReport, findings_of
from .saving import Fitted, facts_of, fitted_of
from .settings import usual_settings
from .task import Done, Task
from .ways import by_trainer, from_coordinates

logger = logging.getLogger(__name__)


@usual_settings()
def fit(
    data: Any,
    *,
    model: str | Backbone = DEMO_MODEL,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Fitted:
    """Fit an adapter to labelled images: one pass over them, then seconds.

    The pass gives bases (of the training images) and coordinates; then everything that may be
    fitted on them takes seconds, so that all of it is tried (`solvers.choice`): gains, class heads
    on coordinates, linear probes on the embedding. What does best on training and validation images
    that it did not see is kept; with `sets="held-out"` validation images tell the sets of classes
    alone. Data with several labels per image are fitted with a sigmoid per class.

    How the images were shared out is saved with the adapter (`classifier.split`), and which it was
    fitted on (`classifier.fitted_on`, never pushed): `evaluate_adapter` takes it from there.

    With `out` it is saved with its classes and a model card; in `run` beside the adapter lie a
    `RunRecord`, numbers and small pictures that a report is drawn from, and `run.yaml`, which
    repeats the fit. What is read is kept in `.OUT.reading` beside the output until the fit has
    succeeded: the same call goes on where an interrupted one stopped, and gives the same adapter.
    An adapter that is there already stays whole until the new one takes its place.

    Args:
        data: what `load_data` takes: a folder of class folders, a table, an archive, a Hub id, a
            DataFrame, (image, label) pairs, a `Dataset` or `DatasetDict`.
        model: the directory or Hub id of a CLIP or another model with a known image tower, or what
            `load_backbone` gives, which stays as it is, for other fits; the bundled CLIP if left
            out. Without a text tower (or with `readout` in `config`) classes are the means of their
            training images.
        out: a directory to save it in; None to save nothing.
        options: whatever a `Recipe` has, such as `method="ridge"`, `seed=1` or `templates=[...]`.

    Raises:
        ResiDualError: a place that cannot be written or holds the images (tried before anything is
            read), bad data, too many unreadable images, a model that is not there, an option that
            there is not, or a config in stream mode without `trainer`.
        KeyboardInterrupt: says what was kept.
    """
    with ExitStack() as stack:
        if out is None:
            target = Path(stack.enter_context(TemporaryDirectory())) / "adapter"
        else:
            target = check_place(out)
        recipe = Recipe.of(options)
        check_apart(target, data, recipe.validation, recipe.test)
        recipe.check_model(model)
        kept = stack.enter_context(keeping(target))
        try:
            fitted = _recorded(recipe, data, model, kept)
            if out is not None:
                fitted.save(target)
        except KeyboardInterrupt as stopped:
            said = "interrupted; nothing is kept without out=."
            if not kept.holds_images:
                said = "interrupted before any image was read."
            elif out is not None:
                said = (
                    f"interrupted; what was read is kept in '{kept.folder}', and the same command "
                    "goes on where it stopped."
                )
            raise KeyboardInterrupt(said) from stopped
    return fitted


def fit_adapter(
    model: str | Backbone, data: Any, out: str | os.PathLike[str], **options: Any
) -> FitReport:
    """What `fit` says of itself, where what it gives is wanted on disk alone."""
    return fit(data, model=model, out=out, **options).summary


@usual_settings()
def compare_methods(model: str | Backbone, data: Any, **options: Any) -> FitReport:
    """Fit with every method and save nothing; `FitReport.methods` has what each gave.

    Arguments and errors are those of `fit`.
    """
    recipe = Recipe.of(options)
    recipe.check_model(model)
    with TemporaryDirectory() as place, keeping(Path(place) / "adapter") as kept:
        images, total = _images(recipe, data)
        task = _task(recipe, recipe.backbone(model), images)
        return _fitted(Pass(images, task, kept, total))[1]


def _images(recipe: Recipe, data: Any) -> tuple[ImageData, int]:
    """The images to fit with, and how many there were with those that are no test."""
    images = recipe.images(data)
    total = images.total
    recipe.check_skipped(images, total)
    if recipe.trainer and "validation" not in images.splits:
        raise ResiDualError(
            "the HF Trainer stops by validation images, and there are none: bring some as "
            "validation=DATA, or a share of the others, which few leaves none of."
        )
    check_sets_of(recipe.sets, images)
    for line in survey(images).summary():
        logger.info("%s", printable(line))
    return images.without_repeated()[0], total


def _recorded(recipe: Recipe, data: Any, model: str | Backbone, kept: Keeping) -> Fitted:
    """The fit, and the record of it while what was read is there."""
    images, total = _images(recipe, data)
    if recipe.words and _undescribed(recipe.settled(), images):
        raise ResiDualError(
            "words are for the components of a report: of data with several labels per image, in "
            "stream mode and of one gain per unit it has none; leave them out."
        )
    task = _task(recipe, recipe.backbone(model), images)
    dictionary = None  # before any work: the texts that components are described with
    if not _undescribed(task.config, images):
        if task.classifier is not None:
            dictionary = dictionary_if_any(task.backbone, recipe.words)
        elif recipe.words:
            check_without_texts(task.backbone, images, None, recipe.words)
    read = Pass(images, task, kept, total)
    done, summary = _fitted(read)
    classifier, images = done.classifier, read.images
    classifier.split = images.split
    learned = ("train",) if recipe.sets == "held-out" else ("train", "validation")
    known = (images.digests.get(part, ()) for part in learned)  # none of data put together by hand
    classifier.fitted_on = tuple(digest for digests in known for digest in digests)
    facts = facts_of(data, done, summary, images, recipe)
    return fitted_of(done, summary, images, facts, recipe.as_file(data, model), dictionary)


def _fitted(read: Pass) -> tuple[Done, FitReport]:
    done = (by_trainer if read.task.recipe.trainer else from_coordinates)(read)
    return done, _report(done, read)


def _task(recipe: Recipe, backbone: Backbone, images: ImageData) -> Task:
    """What is to be fitted."""
    config = recipe.settled(backbone)
    by_texts = backbone.tokenizer is not None and config.readout is None
    named = [] if recipe.method == AUTO else [recipe.method]
    check_methods(named, images.multi_label, means=not by_texts)
    if not by_texts:
        check_without_texts(backbone, images, recipe.templates)
    classifier = None
    if by_texts:
        said = readable(images.class_names)
        both = zip(images.class_names, said, strict=True)
        if other := [f"'{own}' is '{name}'" for own, name in both if name != spoken(own)]:
            listed = printable(some(other, 3))
            logger.info("in prompts %s; a %s beside the images says otherwise", listed, CLASSES)
        classifier = ZeroShotClassifier.from_text(
            backbone.model,
            backbone.tokenizer,
            said,
            recipe.templates or DEFAULT_TEMPLATES,
            image_processor=backbone.image_processor,
            multi_label=images.multi_label,
        )
        classifier.class_names = images.class_names
    settings = {
        "settings": digest_of_json(config.to_dict()),  # before PEFT writes into it
        "templates": list(classifier.templates) if classifier else [],
        "seed": recipe.seed,
        "way": "trainer" if recipe.trainer else "coordinates",
    }
    return Task(backbone, classifier, config, recipe, settings)


def _undescribed(config: ResiDualConfig, images: ImageData) -> bool:
    """Whether there are no components, or no report, for words to describe."""
    return config.mode == "stream" or config.granularity == "unit" or images.multi_label


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


def _report(done: Done, read: Pass) -> FitReport:
    images, start = read.images, "class means" if read.task.classifier is None else "zero-shot"
    largest = images.labelling.chance(done.train_labels, done.after.labels)
    return FitReport(
        zero_shot=done.before.metrics,
        adapted=done.after.metrics,
        encoding_seconds=done.encoding_seconds,
        fitting_seconds=done.fitting_seconds,
        strength=done.strength,
        learned=len(done.train_labels),
        start=start,
        splits={split: len(rows) for split, rows in images.splits.items()},
        classes=len(images.class_names),
        interval=done.after.interval,
        train=done.train,
        largest_class=largest,
        repeated=read.total - images.total,
        skipped=images.skipped,
        findings=(
            *done.notes,
            *findings_of(done.before, done.after, done.train, largest, start, done.table),
        ),
        methods=done.table,
    )
