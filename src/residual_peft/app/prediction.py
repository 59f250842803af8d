"""Files, folders and patterns through a saved adapter: an answer per image, as soon as it is there.

A file that cannot be read is an answer as well, with the reason. Copies may go into a folder per
class; nothing is moved, and nothing is written over.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bases.reading import ReadBatch
from ..classifiers.heads.conformal import By
from ..classifiers.predictions import Prediction, predictions_of
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data import Batches, ImageFiles, SkippedImage
from ..data.inputs import files_in
from ..data.progress import Progress
from ..errors import ResiDualError
from ..hub.files import path_of
from ..hub.places import check_place

AT_ONCE = 1024
"""Files that are taken together where their names come one by one, such as from a pipe."""


@dataclass(frozen=True)
class Answer:
    """What there is to say of one file."""

    file: str  # its path
    prediction: Prediction | None  # None where it could not be read
    reason: str = ""  # why that is
    copied_to: tuple[str, ...] = ()  # where its copies are, if it was sorted

    def as_dict(self, top: int) -> dict[str, Any]:
        """JSON-able: file, and either its error or label, score, labels and the top classes."""
        found = self.prediction
        if found is None:
            return {"file": self.file, "error": self.reason}
        whole = found.as_dict()
        kept = {name: whole[name] for name in ("file", "label", "score", "labels")}
        kept["top"] = [{"label": name, "score": score} for name, score in found.top(top)]
        return (
            kept | found.beyond() | ({"copied_to": list(self.copied_to)} if self.copied_to else {})
        )


class FilePredictor:
    """A saved adapter that answers for files.

    Attributes:
        classifier: the adapter's.
        sorting: where copies go; None nowhere.
    """

    def __init__(
        self,
        adapter: str | os.PathLike[str] | ZeroShotClassifier,
        *,
        sort_into: str | os.PathLike[str] | None = None,
        sure: float = 0.5,
        coverage: float | None = None,
        sets: By | None = None,
        none_of_these: float | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the adapter.

        Args:
            adapter: its directory or Hub id, or the classifier itself.
            sort_into: a folder for copies of the images in a folder per class.
            sure: the probability below which an image is unsure, and copied apart; with several
                labels per image, that from which a label counts.
            coverage: how often a set of classes should hold the right one; None for no sets.
            sets: what these are made by; None for the surest that the adapter can do.
            none_of_these: the share of images of the classes that may be called none of them;
                None for no such answer. Such images are copied apart, too.
            batch_size: images per forward pass.
            num_workers: processes that decode images; None for as many as suit the machine.
            device: where the model runs; the CPU when None.

        Raises:
            ResiDualError: the adapter is not there, or the folder cannot be written.
        """
        if not 0 <= sure <= 1:
            raise ResiDualError(f"sure: wanted a probability from 0 to 1, got {sure}.")
        if not isinstance(adapter, ZeroShotClassifier):
            adapter = ZeroShotClassifier.from_pretrained(adapter, device=device)
        self.classifier = adapter
        self.sure, self.batch_size, self.num_workers = sure, batch_size, num_workers
        self.sets = self.classifier.sets_if_asked(coverage, sets)
        if none_of_these is not None:
            self.classifier.check_none_of_these(none_of_these)
        self.none_of_these = none_of_these
        self.sorting = None if sort_into is None else Sorting(sort_into, adapter.class_names)

    def answers(self, names: Iterable[str], *, progress: Progress = False) -> Iterator[Answer]:
        """An answer per file, in the order of the names, each as soon as its batch is done.

        Names are of files, folders and patterns (`files_in`). A list is taken at once; of others,
        such as a pipe, `AT_ONCE` files at a time.
        """
        but = None if self.sorting is None else self.sorting.root
        files = files_in(names, but=but)
        while found := list(files if isinstance(names, Sequence) else islice(files, AT_ONCE)):
            yield from self._answered(found, progress)

    def _answered(
        self, files: Sequence[str | SkippedImage], progress: Progress
    ) -> Iterator[Answer]:
        images = ImageFiles(files, self.classifier.image_processor)
        batches = Batches(images, self.batch_size, self.num_workers, skip=True, may_be_empty=True)
        done: dict[int, Answer] = {}
        following, missed = 0, 0
        options = {"progress": progress, "description": "classifying"}
        for seen, logits in self.classifier.classified(batches, **options):
            assert seen.index is not None  # Batches give it
            rows = seen.index.tolist()
            names = [str(files[row]) for row in rows]
            answers = self._of(seen, logits, names)
            done |= dict(zip(rows, answers, strict=True))
            done |= _unread(batches.skipped[missed:])
            missed = len(batches.skipped)
            while following in done:  # a batch may come in several parts
                yield done.pop(following)
                following += 1
        done |= _unread(batches.skipped[missed:])
        yield from (done[row] for row in sorted(done))

    def _of(self, batch: ReadBatch, logits: Tensor, files: Sequence[str]) -> list[Answer]:
        classifier, sets = self.classifier, self.sets
        found = predictions_of(
            logits.cpu(),
            classifier.class_names,
            classifier.multi_label,
            files,
            None if sets is None else classifier.plausible(sets, batch, logits),
            plausible_by=None if sets is None else sets.by,
            alike=classifier.alike(batch),
            none_of_these=self.none_of_these,
            thresholds=classifier.thresholds,
        )
        return [
            self._sorted(file, prediction) for file, prediction in zip(files, found, strict=True)
        ]

    def _sorted(self, file: str, prediction: Prediction) -> Answer:
        if self.sorting is None:
            return Answer(file, prediction)
        apart = bool(prediction.none_of_these)
        labels: list[str | None] = []
        if not apart:
            likely = prediction.top(len(prediction.probabilities))
            labels += [name for name, probability in likely if probability >= self.sure]
        kept = labels[: self.classifier.labelling.most] or [None]
        copies = [str(self.sorting.put(file, label, apart=apart)) for label in kept]
        return Answer(file, prediction, copied_to=tuple(copies))


def _unread(skipped: Iterable[tuple[int, str, str]]) -> dict[int, Answer]:
    return {
        row: Answer(file, None, SkippedImage(file, reason).reason) for row, file, reason in skipped
    }


UNSURE, NONE = "unsure", "none of these"
_LONGEST = 100  # characters of a folder's name


class Sorting:
    """Where images of each class are copied to.

    Attributes:
        root: the folder of the classes' folders.
        copied: how many images were.
        present: how many were there already, from an earlier run.
    """

    def __init__(self, root: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        """Args are the folder, made when there is something to put into it, and C class names.

        Raises:
            ResiDualError: the folder cannot be written.
        """
        check_place(root)
        self.root = path_of(root)
        self.copied = self.present = 0
        taken: set[str] = set()
        self.folders = {name: _free(folder_name(name), taken) for name in class_names}
        self.unsure, self.none = _free(UNSURE, taken), _free(NONE, taken)

    def put(self, file: str, label: str | None, *, apart: bool = False) -> Path:
        """Copy a file into the folder of a class, or of the unsure ones (None); returns its path.

        With `apart` into that of what is none of the classes. A file of that name with the same
        content stays, beside one with other content it gets a number: "photo (2).jpg".
        """
        name = self.none if apart else self.unsure if label is None else self.folders[label]
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        stem, suffix = os.path.splitext(os.path.basename(file))
        number = 1
        while True:
            target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem} ({number}){suffix}")
            try:
                _copy_new(file, target)
            except FileExistsError:
                if target.is_file() and filecmp.cmp(file, target, shallow=False):
                    self.present += 1
                    return target
                number += 1
                continue
            self.copied += 1
            return target


def folder_name(class_name: str) -> str:
    """A class name as the name of one folder, on any system.

    >>> folder_name("cat/dog"), folder_name(".."), folder_name("a. ")
    ('cat_dog', '_', 'a')
    """
    kept = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in class_name)
    return kept[:_LONGEST].strip(" .") or "_"


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where another class's is the same but for capitals; then taken."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free.casefold())
    return free


def _copy_new(file: str, target: Path) -> None:
    """Copy a file under a name that nothing has; a copy that fails leaves nothing.

    Raises:
        FileExistsError: something has the name.
    """
    with open(file, "rb") as source, open(target, "xb") as copy:
        try:
            shutil.copyfileobj(source, copy)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    shutil.copystat(file, target)
