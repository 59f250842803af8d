"""What a fit leaves on disk: adapter, classes, card and record, together."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analysis import TextDictionary
from ...classifiers.files import is_ours, of_the_old
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData
from ...hub.directories import CARD, MISTAKES, RUN_DIRECTORY, SKIPPED, SUSPICIOUS
from ...hub.facts import Facts
from ...hub.files import atomic_directory
from ..listing import MISTAKE_HEADERS, SUSPICIOUS_HEADERS, mistakes_of, pictured, write_noted
from ..recording import record_run, run_facts
from ..trusting import trust_of
from .report import FitReport, write_skipped_beside
from .ways import Done


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier, and what there is to say of the fit.

    Attributes:
        classifier: with its adapter and, where that did best, its class head.
        report: counts, scores and what was compared.
        images: those that could be read, test images that were trained on left out.
        done: what was measured on the way.
    """

    classifier: ZeroShotClassifier
    report: FitReport
    images: ImageData
    done: Done


def digests_of(images: ImageData, split: str) -> tuple[str, ...]:
    """Of the images of a split, in their order."""
    return images.digests.get(split, ())  # none of data that a caller put together by hand


def facts_of(data: Any, fitted: Fitted, seed: int, license: str | None) -> Facts:
    """What is known of a fit; of a path only the end, which is all that others can use."""
    images, report = fitted.images, fitted.report
    on_disk = not isinstance(data, str) or Path(data).expanduser().is_dir()
    metrics = dict(report.adapted)
    if len(images.class_names) <= 5:  # then every class is among the top five
        metrics.pop("top5_accuracy", None)
    return Facts(
        dataset=Path(images.source).name if on_disk else images.source,
        dataset_id=None if on_disk else data,
        metrics=metrics,
        metrics_before=report.zero_shot,
        seed=seed,
        license=license,
        method=fitted.done.method,
        splits=report.splits,
        encoding_seconds=report.encoding_seconds,
        fitting_seconds=report.fitting_seconds,
        images_read=fitted.done.images_read,
        strength=report.strength,
        train_accuracy=report.train.get("accuracy"),
        largest_class=report.largest_class,
        skipped=len(images.skipped),
        repeated=report.repeated,
        findings=report.findings,
        methods=report.methods,
        trained=fitted.done.trained,
    )


def save(fitted: Fitted, target: Path, facts: Facts, dictionary: TextDictionary | None) -> None:
    """Adapter, classes, card and record appear together."""
    done, images = fitted.done, fitted.images
    classifier = done.classifier
    classifier.split = images.split
    classifier.fitted_on = (*digests_of(images, "train"), *digests_of(images, "validation"))
    old: list[str] = []
    with atomic_directory(target, gone=old) as folder:
        mine = target / CARD
        if mine.is_file() and not is_ours(mine):  # somebody's own, which stays
            shutil.copyfile(mine, folder / CARD)
        classifier.save_pretrained(folder, card=facts, location=target.name)
        write_skipped_beside(folder, images.skipped)
        if not images.multi_label:  # a report counts images that are right or wrong
            facts = run_facts(classifier, folder, facts, target.name)
            _write_record(fitted, folder / RUN_DIRECTORY, facts, dictionary)
        # what an earlier fit left there and this one does not replace would speak of it
        if before := of_the_old(target):
            old += [*before, SKIPPED]


def _write_record(
    fitted: Fitted, folder: Path, facts: Facts, dictionary: TextDictionary | None
) -> None:
    """The record, and tables of the images to look at; all of it stays at home."""
    done, images = fitted.done, fitted.images
    trusted = None
    if done.seen is not None:
        means = fitted.report.start != "zero-shot"
        trusted = trust_of(*done.seen, images, done.after, means=means)
    suspicious = () if trusted is None else trusted.suspicious
    record = record_run(
        done.classifier,
        images.test,
        done.before,
        done.after,
        facts,
        done.rows,
        dictionary,
        None if trusted is None else trusted.record,
        pictured(suspicious),
    )
    record.save(folder)
    names = images.class_names
    mistakes = mistakes_of(done.after, images.test)
    write_noted(folder / MISTAKES, mistakes, names, MISTAKE_HEADERS)
    write_noted(folder / SUSPICIOUS, suspicious, names, SUSPICIOUS_HEADERS)
