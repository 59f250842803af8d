"""What a fit gave and took, and what it must say of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...classifiers.evaluation import Evaluation
from ...data import SkippedImage
from ...data.labels import MANY_LABELS, ONE_LABEL, Labelling
from ...errors import counted
from ...hub.facts import FitNumbers, MethodRow
from ...reporting import readable_bytes
from ...solvers import strength_note

FAR = 0.1  # of accuracy: training images this much above test images are worth a word


@dataclass(frozen=True)
class FitReport(FitNumbers):
    """What a fit gave, beside what it took.

    Attributes:
        zero_shot: metrics on the test images without the adapter; where classes are the means of
            their training images, with those.
        adapted: metrics on them with it.
        start: "zero-shot" or "class means": what the classes are before the adapter.
        classes: how many there are.
        interval: of the adapted accuracy on the test images, 95 %; None with several labels.
        train: metrics on the training images with the adapter.
        skipped: images that could not be read.
    """

    zero_shot: dict[str, float]
    adapted: dict[str, float]
    start: str = "zero-shot"
    classes: int = 0
    interval: tuple[float, float] | None = None
    train: dict[str, float] = field(default_factory=dict)
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several: whose metric was measured."""
        return next(own for own in (ONE_LABEL, MANY_LABELS) if own.metric_names[0] in self.adapted)

    @property
    def metric(self) -> str:
        """The name of the metric that is told first."""
        return self.labelling.metric_names[0]

    def lines(self) -> list[str]:
        """All of it for people, the scores first."""
        name = self.metric
        before, after = self.zero_shot[name], self.adapted[name]
        counts = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        found = [
            f"{self.start} {before:.3f} -> adapted {after:.3f} "
            f"({self.labelling.metric_words}, test images)",
            f"{sum(self.splits.values()):,} images of {self.classes} classes: {counts}",
        ]
        low, high = self.interval or (None, None)
        around = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
        base = ""
        if self.largest_class is not None:
            base = f"; {self.labelling.chance_words[0]} {self.largest_class:.3f}"
        found.append(
            f"test {after:.3f} of {self.splits.get('test', 0):,} images{around}; "
            f"train {self.train[name]:.3f}{base}"
        )
        if self.repeated:
            found.append(
                f"{counted(self.repeated, 'test image')} left out of the score: trained on as well"
            )
        if self.skipped:
            found.append(f"{counted(len(self.skipped), 'image')} left out as unreadable:")
            found += [f"  {item.title}: {item.reason}" for item in self.skipped[:10]]
            found += ["  ... (all of them are in skipped.csv)"] if len(self.skipped) > 10 else []
        if self.encoding_seconds is not None and self.fitting_seconds is not None:
            read, fit = self.encoding_seconds, self.fitting_seconds
            found.append(f"{read:.1f} s to read the images, {fit:.1f} s to fit")
        found += [*self.table(), *self.notes()]
        note = strength_note(self.strength, self.learned or 0)
        return found if note is None else [*found, f"Note: {note}"]

    def table(self) -> list[str]:
        """What was compared, for people; empty where nothing was."""
        return method_lines(self.methods)

    def notes(self) -> list[str]:
        """What the numbers say against the fit, for people."""
        return [f"Note: {finding}" for finding in self.findings]


def method_lines(rows: Sequence[MethodRow]) -> list[str]:
    """A table of what was compared, for people; none where nothing was."""
    if not rows:
        return []
    alike = any(row.recall is not None for row in rows)
    recalls = ("recall", "test recall") if alike else ()
    heads = ("method", "loss", "left-out", "test", "95 %", *recalls, "numbers", "bytes", "seconds")
    cells = [heads]
    for row in rows:
        around = "" if row.low is None else f"{row.low:.3f}-{row.high:.3f}"
        own = tuple(_three(share) for share in (row.recall, row.test_recall)) if alike else ()
        cells.append(
            (
                row.name + (" *" if row.chosen else ""),
                _three(row.log_loss),
                _three(row.left_out),
                f"{row.score:.3f}",
                around,
                *own,
                f"{row.trained:,}",
                "" if row.bytes is None else readable_bytes(row.bytes),
                f"{row.seconds:.1f}",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    found = []
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        found.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]).rstrip())
    by_hand = len(rows) <= 2  # zero-shot is always beside what was asked for
    what = "mean per-class recall of" if alike else "loss on"
    why = (
        "as asked for" if by_hand else f"by the {what} left-out training images, not by test images"
    )
    return [*found, f"(* chosen {why})"]


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _elsewhere(count: int, tried: Sequence[MethodRow]) -> str:
    """Where left-out images, which are more than the test images, say otherwise."""
    first = next((row.left_out for row in tried if row.name == "zero-shot"), None)
    chosen = next((row.left_out for row in tried if row.chosen), None)
    if first is None or chosen is None or chosen <= first:
        return ""
    return (
        f" of {counted(count, 'image')}; on images to learn from, left out by turns, it is: "
        f"{chosen:.3f} against {first:.3f}"
    )


def findings_of(
    before: Evaluation,
    after: Evaluation,
    train: Mapping[str, float],
    largest: float,
    start: str,
    tried: Sequence[MethodRow] = (),
) -> tuple[str, ...]:
    """What the numbers of a fit say against it, before and after it on the test images.

    `train` are metrics on the training images, `largest` the metric by chance (`OneLabel.chance`),
    `start` is what the classes were before, and `tried` what was compared.
    """
    labelling = after.labelling
    name, said = labelling.metric_names[0], labelling.metric_words
    old, new, count = before.metrics[name], after.metrics[name], len(after.labels)
    found = []
    if new <= old:
        found.append(
            f"the adapted model is not better than {start} on the test images ({said} {new:.3f} "
            f"against {old:.3f}{_elsewhere(count, tried)})."
        )
    elif (gain := labelling.difference(after.logits, before.logits, after.labels)) and gain[0] <= 0:
        found.append(
            f"on {counted(count, 'test image')} the gain over {start} could be chance (95 % "
            f"interval of the difference {gain[0]:+.3f} to {gain[1]:+.3f})."
        )
    if new <= largest:
        other = labelling.chance_words[1]
        found.append(f"the adapted model is not better than {other} ({new:.3f}, {largest:.3f}).")
        if len(tried) > 2 and all(row.score <= largest for row in tried):
            found.append(f"nothing that was tried is: of {len(tried)} methods none beats it.")
    interval = after.interval
    if train[name] - new > FAR and (interval is None or train[name] > interval[1]):
        found.append(
            f"{said} on training images is far above that on test images ({train[name]:.3f}, "
            f"{new:.3f}): the fit knows its images by heart; more images would help."
        )
    return tuple(found)
