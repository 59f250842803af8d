"""The two ways of a fit: from coordinates of one pass over the images, and by the HF Trainer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from ...classifiers.evaluation import Evaluation, evaluate
from ...classifiers.heads.choosing import some_rows
from ...classifiers.heads.left_out import LeftOut
from ...classifiers.trained_head import HEAD_BYTES, TrainedHead, embedding_features
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, batches
from ...errors import counted
from ...hub.facts import MethodRow
from ...hub.files import read_tensors, write_tensors
from ...solvers import large
from ...solvers.choice import AT_MOST, AUTO, choose, run_methods
from ...solvers.coordinates import collect_readouts
from ...solvers.methods import Outcome, Rows
from ...solvers.store import CoordinateStore, Stores
from ...solvers.training import trainer_kwargs, training_arguments
from ...towers.running import unadapted
from ...tuner import fit_bases, gains_of
from ..trusting import contradicting
from .beside import calibrated, left_beside
from .reading import TITLES, Pass
from .scores import scored, scored_by
from .task import Done, Task, clock

SIZING = 4000  # images that a low rank is fitted to
RECALL = "mean_per_class_recall"
METHOD = "the Hugging Face Trainer, forward and backward for every batch"


@dataclass(frozen=True)
class _Tried:
    """Methods that were fitted, and the one of them that counts."""

    outcomes: Mapping[str, Outcome]  # by method; what counts is fitted on all images
    left_out: Mapping[str, LeftOut]  # by which they were compared
    chosen: str
    images: int  # that they were compared on
    rows: Rows | None  # all of them, where their coordinates are in memory

    @classmethod
    def of(
        cls,
        compared: Iterable[Outcome],
        again: Mapping[str, Outcome],
        chosen: str,
        images: int,
        rows: Rows,
    ) -> "_Tried":
        first = {one.method: one for one in compared}
        left_out = {name: one.left_out for name, one in first.items()}
        return cls({**first, **again}, left_out, chosen, images, rows)

    def notes(self, whole: int) -> tuple[str, ...]:
        if self.images == whole or len(self.outcomes) < 3:
            return ()
        return (
            f"methods were compared on {self.images:,} of {whole:,} images, a draw of every class; "
            "the one that was chosen was then fitted on all.",
        )


def from_coordinates(read: Pass) -> Done:
    """Each image is read once, test images too; then what suits the images best is fitted."""
    task, model = read.task, read.task.adapted()
    read.begin(model)
    started = clock()
    own = task.config.basis is None  # else the one that was asked for stays
    stores = {"train": read.read(model, "train", fit_basis=own)}
    if "validation" in read.images.splits:
        stores["validation"] = read.read(model, "validation")
    encoded, images_read = clock(), sum(map(len, stores.values()))
    held_out = stores.pop("validation") if task.recipe.sets == "held-out" else None
    seen = Stores(tuple(stores.values()))
    classifier = task.with_classes(model, read.images, seen.readout, seen.labels)
    groups = read.groups(stores)
    tried = _on_all(task, classifier, seen, groups)
    outcomes, name, rows = dict(tried.outcomes), tried.chosen, tried.rows
    fitted = clock()
    test = read.read(model, "test")
    measured = {own: scored_by(one, classifier, test) for own, one in outcomes.items()}
    chosen, measured[name] = _sized(outcomes[name], classifier, seen, measured[name], test)
    outcomes[name] = chosen
    inside = scored_by(chosen, classifier, seen).metrics
    chosen.put_into(classifier)
    beside = left_beside(task, chosen, classifier, seen, groups)
    if held_out is not None:
        beside += calibrated(classifier, chosen, held_out, seen, read.images)
    # of several labels none counts more
    alike = bool(classifier.labelling.where_one(task.recipe.balanced))
    notes = (*tried.notes(len(seen)), *chosen.notes, *_copies(rows, read.images), *beside)
    return Done(
        classifier=classifier,
        before=measured["zero-shot"],
        after=measured[name],
        train=inside,
        train_labels=seen.labels,
        rows=test,
        encoding_seconds=encoded - started,
        fitting_seconds=fitted - encoded,
        strength=chosen.strength if name == "gains" else None,
        method=f"{task.title(name)}, from one pass over the images",
        images_read=images_read,
        trained=chosen.parameter_count,
        table=tuple(
            _row(one, tried.left_out[own], task.title(own), measured[own], own == name, alike)
            for own, one in outcomes.items()
        ),
        notes=notes,
        learned=rows,
        outcome=chosen,
    )


def _copies(rows: Rows | None, images: ImageData) -> tuple[str, ...]:
    if rows is None or not rows.copies:
        return ()
    named, are = contradicting(rows, images), "is a copy" if rows.copies == 1 else "are copies"
    return (
        f"{rows.copies:,} of {counted(len(rows.labels), 'image')} to learn from {are} of others: "
        "where images were left out to choose by, copies went together."
        + (f" With different labels: {named}." if named else ""),
    )


def _on_all(
    task: Task, classifier: ZeroShotClassifier, stores: Stores, groups: Tensor | None
) -> _Tried:
    options: dict[str, Any] = {"means": task.classifier is None, "balanced": task.recipe.balanced}
    options["groups"] = groups
    if stores.coordinate_bytes <= large.IN_MEMORY:
        keep = bool(task.recipe.keep_statistics)
        rows = large.draw_of(classifier, stores, len(stores), by_labels=keep, **options)
        return _fitted(rows, task.recipe.method)
    drawn = large.draw_of(classifier, stores, AT_MOST, **options)
    tried = _fitted(drawn, task.recipe.method)
    outcome = tried.outcomes[tried.chosen]
    whole = large.fit_all(outcome, drawn, stores, means=options["means"], groups=groups)
    return replace(tried, outcomes={**tried.outcomes, tried.chosen: whole}, rows=None)


def _sized(
    chosen: Outcome,
    classifier: ZeroShotClassifier,
    stores: Stores,
    before: Evaluation,
    test: CoordinateStore,
) -> tuple[Outcome, Evaluation]:
    """The chosen one with its head as it will be saved, measured anew; a note says the cost."""
    head = chosen.head
    if head is None or head.bytes <= HEAD_BYTES:
        return chosen, before
    index = some_rows(stores.labels, head.class_count, SIZING)
    part = stores.load() if index is None else stores.rows(index)
    coordinates = head.features == "coordinates"
    features = part.coordinates if coordinates else embedding_features(part.readout)
    small = head.within(HEAD_BYTES, features)
    after = scored_by(replace(chosen, head=small), classifier, test)
    name = before.labelling.metric_names[0]
    note = (
        f"the class head of {head.bytes / 1e6:,.0f} MB is saved in {small.bytes / 1e6:,.0f} MB "
        f"({small.described}): {name.replace('_', ' ')} on test images {before.metrics[name]:.3f} "
        f"-> {after.metrics[name]:.3f}.{_forgotten(head, small)}"
    )
    return replace(chosen, head=small, notes=(*chosen.notes, note)), after


def _forgotten(head: TrainedHead, small: TrainedHead) -> str:
    """What a head of low rank no longer has, in words."""
    if not small.low_rank:
        return ""
    if head.thresholds is not None:
        return " It keeps no thresholds of that head: labels are given from one half on."
    if head.left_out_scores is not None:
        return " It keeps no scores of that head: sets of classes are by held-out images alone."
    return ""


def _fitted(rows: Rows, method: str) -> _Tried:
    """Zero-shot is always tried."""
    if method != AUTO:
        found = run_methods(list(dict.fromkeys(("zero-shot", method))), rows, progress=True)
        return _Tried.of(found, {}, method, len(rows.labels), rows)
    choice = choose(rows, progress=True)
    chosen = choice.chosen.method
    return _Tried.of(choice.outcomes, {chosen: choice.chosen}, chosen, choice.images, rows)


def _row(
    outcome: Outcome,
    left: LeftOut,
    title: str,
    measured: Evaluation,
    chosen: bool,
    balanced: bool,
) -> MethodRow:
    interval = measured.interval
    told = bool(left.known.any())
    low, high = interval or (None, None)
    return MethodRow(
        name=outcome.method,
        title=title,
        score=measured.metrics[measured.labelling.metric_names[0]],
        low=low,
        high=high,
        left_out=left.accuracy if told else None,
        log_loss=left.log_loss if told else None,
        trained=outcome.parameter_count,
        seconds=outcome.seconds,
        chosen=chosen,
        bytes=outcome.bytes,
        recall=left.recall if told and balanced else None,
        test_recall=measured.metrics[RECALL] if balanced else None,
    )


def by_trainer(read: Pass) -> Done:
    """Bases by a pass that also finds what cannot be read, then the Trainer."""
    task, model = read.task, read.task.adapted()
    if task.config.mode == "stream":
        return _in_stream_mode(read, model)
    read.begin(model)
    started = clock()
    train = read.read(model, "train", fit_basis=task.config.basis is None)
    encoded = clock()
    read.read(model, "validation")  # the Trainer knows no way around what it cannot read
    test = read.read(model, "test")
    classifier = task.with_classes(model, read.images, train.readout, train.labels)
    before = scored(classifier, test, None)
    seconds = _train(read, classifier)
    gains = gains_of(model).detach().cpu()
    after = scored(classifier, test, gains)
    inside = scored(classifier, train, gains).metrics
    times = (encoded - started, seconds)
    return Done(classifier, before, after, inside, train.labels, test, *times, METHOD, len(train))


def _in_stream_mode(read: Pass, model: PeftModel) -> Done:
    task, options, seen = read.task, read.task.recipe.reading, {}
    for split in TITLES:
        loader = batches(read.processed(split), skip=True, **options)
        seen[split] = collect_readouts(model, loader, progress=True)
        read.drop(split, loader.skipped)
    train, test = seen["train"], seen["test"]
    classifier = task.with_classes(model, read.images, train.readout, train.labels)
    with unadapted(model), torch.no_grad():
        logits = classifier.logits(test.readout.to(classifier.device)).cpu()
    before = Evaluation(classifier.class_names, logits, test.labels)
    started = clock()
    if task.config.basis is None:
        fit_bases(model, batches(read.processed("train"), **options), progress=True)
    encoded = clock()
    seconds = _train(read, classifier)
    after, inside = (
        evaluate(classifier, read.processed(split), name=TITLES[split], progress=True, **options)
        for split in ("test", "train")
    )
    scores = (before, after, inside.metrics)
    times = (encoded - started, seconds)
    return Done(classifier, *scores, train.labels, None, *times, METHOD, len(train))


def _train(read: Pass, classifier: ZeroShotClassifier) -> float:
    """Run the Trainer, on from its last checkpoint where there is one; its seconds."""
    started = clock()
    folder, trained = read.kept.checkpoints, read.kept.trained
    settings = training_arguments(folder, seed=read.task.recipe.seed, disable_tqdm=False)
    trainer = Trainer(**trainer_kwargs(classifier, read.images, settings))
    gains = {n: p for n, p in classifier.model.named_parameters() if p.requires_grad}
    if trained.is_file():  # all that was left was to save: early stopping would train on
        found, _ = read_tensors(trained)
        with torch.no_grad():
            for name, parameter in gains.items():
                parameter.copy_(found[name])
        return clock() - started
    last = read.kept.last_checkpoint
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    write_tensors(trained, {name: parameter.detach() for name, parameter in gains.items()})
    return clock() - started
