"""What a fit leaves: in memory, and on disk adapter, classes, card and record together."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...analysis import TextDictionary
from ...classifiers.cards import is_ours
from ...classifiers.files import of_the_old
from ...classifiers.zero_shot import ZeroShotClassifier
from ...data import ImageData, write_skipped
from ...errors import printable_lines
from ...hub.directories import CARD, MISTAKES, REPORT, RUN_DIRECTORY, RUN_YAML, SKIPPED, SUSPICIOUS
from ...hub.facts import Facts
from ...hub.files import atomic_directory, name_of, path_of
from ...reporting import write_report
from ...reporting.run_record import RunRecord
from ..listing import MISTAKE_HEADERS, SUSPICIOUS_HEADERS, Noted, mistakes_of, write_noted
from ..recording import record_run, run_facts
from ..trusting import Trusted, sets_of, trust_of
from .recipe import Recipe
from .report import FitReport
from .task import Done

UNSAVED = "my-adapter"
"""What a report calls an adapter that was not saved."""


@dataclass(frozen=True, repr=False)
class Fitted:
    """A fitted classifier, and what there is to say of the fit.

    Attributes:
        classifier: with its adapter and, where that did best, its class head.
        summary: counts, scores and what was compared.
        images: those that could be read, test images that were trained on left out.
        facts: for its card and report.
        run: as YAML that repeats it (`residual-peft fit --config`).
        record: what a report is drawn from.
        mistakes: test images that are taken for another class; None with several labels each.
        suspicious: training images whose label looks wrong.
    """

    classifier: ZeroShotClassifier
    summary: FitReport
    images: ImageData
    facts: Facts
    run: str
    record: RunRecord
    mistakes: list[Noted] | None
    suspicious: Sequence[Noted]

    def __repr__(self) -> str:
        return printable_lines("\n".join(self.summary.lines()))

    @property
    def table(self) -> str:
        """What was compared, a line per method; empty for the Trainer's way."""
        return "\n".join(self.summary.table())

    def report(self, path: str | os.PathLike[str] = REPORT) -> Path:
        """Write the report, one HTML file that needs no other; returns its path.

        Raises:
            ResiDualError: it cannot be written.
        """
        target = path_of(path)
        write_report(self.record, target)
        return target

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Save adapter, classes, card and record together; returns their directory.

        Raises:
            ResiDualError: the directory cannot be written.
        """
        target, classifier = path_of(out).absolute(), self.classifier
        old: list[str] = []
        with atomic_directory(target, gone=old) as folder:
            mine = target / CARD
            if mine.is_file() and not is_ours(mine):  # somebody's own, which stays
                shutil.copyfile(mine, folder / CARD)
            classifier.save_pretrained(folder, card=self.facts, location=target.name)
            if self.images.skipped:
                write_skipped(folder / SKIPPED, self.images.skipped)
            else:
                (folder / SKIPPED).unlink(missing_ok=True)
            # the record, and tables of the images to look at; all of it stays at home
            run, names = folder / RUN_DIRECTORY, self.images.class_names
            facts = run_facts(classifier, folder, self.facts, target.name)
            replace(self.record, facts=facts).save(run)
            if self.mistakes is not None:
                write_noted(run / MISTAKES, self.mistakes, names, MISTAKE_HEADERS)
                write_noted(run / SUSPICIOUS, self.suspicious, names, SUSPICIOUS_HEADERS)
            (run / RUN_YAML).write_text(self.run, encoding="utf-8")
            # what an earlier fit left there and this one does not replace would speak of it
            if before := of_the_old(target):
                old += [*before, SKIPPED]
        return target


def facts_of(data: Any, done: Done, summary: FitReport, images: ImageData, recipe: Recipe) -> Facts:
    """What is known of a fit; of a path only the end, which is all that others can use."""
    # what the splits were cut by, which an `ImageData` was before; the Trainer draws its order
    drawn = images.split.seed if images.split.shares or images.split.few else None
    on_disk = not isinstance(data, str) or Path(data).expanduser().exists()
    metrics = dict(summary.adapted)
    if len(images.class_names) <= 5:  # then every class is among the top five
        metrics.pop("top5_accuracy", None)
    return Facts(
        dataset=name_of(images.source) if on_disk else images.source,
        dataset_id=None if on_disk else data,
        metrics=metrics,
        metrics_before=summary.zero_shot,
        seed=recipe.seed if drawn is None and recipe.trainer else drawn,
        license=recipe.license,
        method=done.method,
        images_read=done.images_read,
        train_accuracy=summary.train.get(summary.metric),
        skipped=len(images.skipped),
        trained=done.trained,
        **summary.numbers(),
    )


def fitted_of(
    done: Done,
    summary: FitReport,
    images: ImageData,
    facts: Facts,
    run: str,
    dictionary: TextDictionary | None,
) -> Fitted:
    """All of a fit, with what is told of its images; what was read must still be there."""
    trusted = Trusted()
    if done.learned is not None and done.outcome is not None:
        means = summary.start != "zero-shot"
        sets = sets_of(done.classifier, done.after, done.rows)
        trusted = trust_of(done.learned, done.outcome, images, sets, means=means)
    mistakes = mistakes_of(done.after, images.test)
    record = record_run(
        done.classifier,
        images.test,
        done.before,
        done.after,
        run_facts(done.classifier, None, facts, UNSAVED),
        rows=done.rows,
        dictionary=dictionary,
        trust=trusted.record,
        suspicious=trusted.suspicious,
        mistakes=mistakes,
    )
    return Fitted(
        classifier=done.classifier,
        summary=summary,
        images=images,
        facts=facts,
        run=run,
        record=record,
        mistakes=mistakes,
        suspicious=trusted.suspicious,
    )
