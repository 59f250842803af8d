"""Images that are to be looked at: mistakes on test images, labels that look wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from ..classifiers.evaluation import Evaluation
from ..data.checking import files_of, short_name, undecoded
from ..data.images import UnreadableImage, to_rgb
from ..data.pictures import thumbnail
from ..data.skipped import write_listing
from ..hub.files import PathLike
from ..reporting.run_record import NamedImage

SHOWN = 24
"""Pictures of each kind that a report has; the tables have all of them."""


@dataclass(frozen=True)
class Noted:
    """An image whose label and what it is taken for differ."""

    dataset: Dataset  # that it is in
    row: int  # of it
    file: str  # what it is called
    label: int  # number of its class
    other: int  # of the class that it is taken for
    score: float  # the probability of `other`, or that the label is wrong


def mistakes_of(
    evaluation: Evaluation, dataset: Dataset, title: str = "the test split"
) -> list[Noted] | None:
    """Images that are taken for another class, those first whose own class was the least likely.

    None where no image is right or wrong, with several labels each. The dataset is in the order of
    `evaluation.index`, or in its own.
    """
    labels, logits = evaluation.labels.cpu(), evaluation.logits.double().cpu()
    surprise = evaluation.labelling.surprise(logits, labels)
    if surprise is None:
        return None
    shares, guesses = logits.softmax(1), logits.argmax(1)
    order = surprise.neg().argsort(stable=True)
    order = order[(guesses != labels)[order]]
    rows = (order if evaluation.index is None else evaluation.index.cpu()[order]).tolist()
    files = files_of(dataset, rows, title)
    scores = shares.gather(1, guesses[:, None])[order, 0]
    columns = (files, labels[order].tolist(), guesses[order].tolist(), scores.tolist())
    return [Noted(dataset, row, *rest) for row, *rest in zip(rows, *columns, strict=True)]


def write_noted(
    path: PathLike, noted: Sequence[Noted], class_names: Sequence[str], headers: Sequence[str]
) -> None:
    """Write noted images as CSV: file, label, what it is taken for, probability."""
    write_listing(
        path,
        headers,
        ((x.file, class_names[x.label], class_names[x.other], x.score) for x in noted),
    )


MISTAKE_HEADERS = ("file", "label", "prediction", "score")
SUSPICIOUS_HEADERS = ("file", "label", "looks like", "probability that the label is wrong")


def pictured(noted: Sequence[Noted], limit: int = SHOWN) -> tuple[NamedImage, ...]:
    """The first of them with small pictures, by short names; unreadable ones are left out."""
    found = []
    for item in noted[:limit]:
        try:
            stored = undecoded(item.dataset)[item.row]["image"]
            image = thumbnail(to_rgb(stored, f"'{item.file}'"))
        except UnreadableImage:
            continue
        name = short_name(item.file)
        found.append(NamedImage(name, item.label, item.other, item.score, image))
    return tuple(found)
