"""`RunRecord`: save and load."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...analysis.describing import Words
from ...data.labels import labelling_in
from ...data.pictures import PICTURE_SUFFIXES, picture_suffix
from ...errors import ResiDualError
from ...hub.directories import EXAMPLES, RECORD_JSON, RECORD_TENSORS, RUN_DIRECTORY
from ...hub.facts import Facts
from ...hub.files import (
    PathLike,
    atomic_directory,
    inside,
    path_of,
    plain_of,
    quoted,
    read_bytes,
    read_object,
    read_tensors,
    record_of,
    tensor_of,
    whole_directory,
    write_json,
    write_tensors,
)
from .parts import (
    FORMAT_VERSION,
    Example,
    GainRecord,
    HeadShares,
    NamedImage,
    StoredExample,
    StoredGains,
    StoredHead,
    StoredImage,
    StoredRun,
    TrustRecord,
    stored_part,
)

MAX_PICTURE = 2**20  # bytes
HEAD_SHARE, HEAD_TOWARD = "head_share", "head_toward_label"


@dataclass(frozen=True)
class RunRecord:
    """N test images of C classes before and after an adapter, and how that adapter was made.

    ```python
    record = RunRecord.load("my-adapter")       # what `fit_adapter` left there
    write_report(record, "report.html")
    ```

    Attributes:
        class_names: C names.
        labels: (N,), or zeros and ones (N, C).
        before: logits without the adapter (N, C), float32.
        after: logits with it.
        facts: how it was made.
        gains: by unit, None where no unit has gains of its own (stream mode), or a class head
            decides.
        words: for units and components; empty when nobody looked for them.
        examples: images that changed side.
        head: what a class head makes of the units; None without one.
        trust: what left-out training images say; None where none were left out.
        mistakes: test images that are taken for another class, the worst first.
        suspicious: training images whose label looks wrong, the surest first.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    before: Tensor
    after: Tensor
    facts: Facts
    gains: GainRecord | None = None
    words: tuple[Words, ...] = ()
    examples: tuple[Example, ...] = ()
    head: HeadShares | None = None
    trust: TrustRecord | None = None
    mistakes: tuple[NamedImage, ...] = ()
    suspicious: tuple[NamedImage, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.labels), len(self.class_names))
        for name in ("before", "after"):
            if getattr(self, name).shape != shape:
                raise ResiDualError(
                    f"wanted the logits {name} of shape {shape}, one row per test image and one "
                    f"column per class, got {tuple(getattr(self, name).shape)}."
                )
        if not len(self.labels):
            raise ResiDualError("wanted test images, got none.")
        labelling_in(self.labels).check(self.labels, shape[1])
        needed = ("model_name", "adapter", "method", "trained")
        if missing := [name for name in needed if getattr(self.facts, name) is None]:
            raise ResiDualError(f"wanted all facts of a fit, got no {missing[0]}.")
        if any(not 0 <= example.row < shape[0] for example in self.examples):
            raise ResiDualError(f"wanted examples among the {shape[0]} test images.")
        named = [
            number for x in (*self.mistakes, *self.suspicious) for number in (x.label, x.other)
        ]
        named += [] if self.head is None else [x.class_index for x in self.head.reasons]
        if any(not 0 <= number < shape[1] for number in named):
            raise ResiDualError(
                f"wanted classes from 0 to {shape[1] - 1} beside images and reasons."
            )

    @property
    def pictures(self) -> dict[str, bytes]:
        """What lies in `examples/`, by name."""
        found = {f"{x.row}": x.image for x in self.examples}
        for kind, images in (("mistake", self.mistakes), ("suspicious", self.suspicious)):
            found |= {f"{kind}-{place}": x.image for place, x in enumerate(images)}
        return {name + picture_suffix(image, "an example"): image for name, image in found.items()}

    def save(self, directory: PathLike) -> None:
        """Write the record; pictures of an earlier one in the same place go."""
        target = path_of(directory)
        # ties the two files to each other, should a crash leave one of an earlier run
        stamp = uuid.uuid4().hex
        pictures = self.pictures
        with atomic_directory(target) as folder:
            for name, image in pictures.items():
                (folder / EXAMPLES).mkdir(exist_ok=True)
                (folder / EXAMPLES / name).write_bytes(image)
            write_tensors(folder / RECORD_TENSORS, self._tensors(), {"stamp": stamp})
            write_json(folder / RECORD_JSON, self._described(stamp, list(pictures)))
        for path in (target / EXAMPLES).glob("*"):
            if path.name not in pictures and path.suffix in PICTURE_SUFFIXES.values():
                path.unlink()

    @classmethod
    def load(cls, directory: PathLike) -> "RunRecord":
        """Read a record from its own directory, or from that of the adapter that it lies in.

        Raises:
            ResiDualError: there is none, a file is missing, cut short or of another kind, or the
                files do not belong together.
        """
        given = path_of(directory)
        places = map(whole_directory, (given, given / RUN_DIRECTORY))
        folder = next((f for f in places if (f / RECORD_JSON).exists()), None)
        if folder is None:
            raise ResiDualError(
                f"wanted a directory with the record of a fit ({RUN_DIRECTORY}/{RECORD_JSON}), got "
                f"'{given}', which has none; `residual-peft fit` leaves one beside its adapter."
            )
        for name in (RECORD_JSON, RECORD_TENSORS):
            if not inside(folder / name, given):  # the report would show files of this machine
                raise ResiDualError(
                    f"wanted {quoted(folder / name)} in the directory itself, got a link that "
                    "leads out of it; copy the record's files there."
                )
        described, path = read_object(folder / RECORD_JSON), folder / RECORD_JSON
        version = described.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ResiDualError(
                f"{quoted(path)} was written by a newer residual-peft (format {version}, this one "
                f"reads {FORMAT_VERSION}); update the package."
            )
        stored = record_of(described, StoredRun, quoted(path), unknown="ignore")
        tensors, metadata = read_tensors(folder / RECORD_TENSORS)
        try:
            if stored.stamp != metadata.get("stamp"):
                raise ResiDualError(f"{RECORD_TENSORS} is of another run.")
            return cls(
                class_names=stored.class_names,
                facts=stored.facts,
                gains=None if stored.gains is None else _gains(stored.gains, tensors, folder),
                words=stored.words,
                examples=tuple(
                    Example(item.row, _picture(item, folder)) for item in stored.examples
                ),
                head=None if stored.head is None else _head(stored.head, tensors, folder),
                trust=stored.trust,
                mistakes=_named(stored.mistakes, folder),
                suspicious=_named(stored.suspicious, folder),
                **_logits(tensors, folder, len(stored.class_names)),
            )
        except ResiDualError as error:
            raise ResiDualError(
                f"{quoted(path)} is no whole record of a fit: {error} Fit the adapter again, or "
                "restore the directory."
            ) from None

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"labels": self.labels.long()}
        # one tensor where the fit left all as it was, and a file takes none twice
        tensors |= {"before": self.before.float(), "after": self.after.float().clone()}
        if self.gains is not None:
            tensors |= {name: tensor.float() for name, tensor in self.gains.tensors().items()}
        if self.head is not None:
            tensors[HEAD_SHARE] = self.head.share.float()
            tensors[HEAD_TOWARD] = self.head.toward_label.float().clone()
        return tensors

    def _described(self, stamp: str, names: list[str]) -> dict[str, Any]:
        rest = iter(names)
        run = StoredRun(
            stamp=stamp,
            class_names=self.class_names,
            facts=self.facts,
            gains=stored_part(self.gains, StoredGains),
            words=self.words,
            examples=tuple(StoredExample(x.row, next(rest)) for x in self.examples),
            head=stored_part(self.head, StoredHead),
            trust=self.trust,
            mistakes=tuple(StoredImage.of(x, next(rest)) for x in self.mistakes),
            suspicious=tuple(StoredImage.of(x, next(rest)) for x in self.suspicious),
        )
        return plain_of(run) | {"facts": self.facts.stored()}


def _logits(tensors: dict[str, Tensor], folder: Path, classes: int) -> dict[str, Tensor]:
    """Labels (N,) or (N, C), and logits (N, C)."""
    path = folder / RECORD_TENSORS
    several = "labels" in tensors and tensors["labels"].ndim == 2
    labels = tensor_of(tensors, "labels", path, None, *[classes] * several, whole=True)
    shape = (len(labels), classes)
    logits = {name: tensor_of(tensors, name, path, *shape) for name in ("before", "after")}
    return {"labels": labels.long(), **logits}


def _gains(stored: StoredGains, tensors: dict[str, Tensor], folder: Path) -> GainRecord:
    path, total = folder / RECORD_TENSORS, sum(stored.counts)
    names = ["gains", "share", "toward_label"]
    names += ["eigenvalues"] if "eigenvalues" in tensors else []
    found: dict[str, Any] = {name: tensor_of(tensors, name, path, total) for name in names}
    return GainRecord(**vars(stored), **found)


def _head(stored: StoredHead, tensors: dict[str, Tensor], folder: Path) -> HeadShares:
    path, total = folder / RECORD_TENSORS, sum(stored.counts)
    share, toward = (tensor_of(tensors, n, path, total) for n in (HEAD_SHARE, HEAD_TOWARD))
    return HeadShares(**vars(stored), share=share, toward_label=toward)


def _named(stored: tuple[StoredImage, ...], folder: Path) -> tuple[NamedImage, ...]:
    return tuple(item.restored(_picture(item, folder)) for item in stored)


def _picture(item: StoredExample | StoredImage, folder: Path) -> bytes:
    # a record may come from a stranger: neither a name nor a link must lead to other files of
    # this machine, as the report shows what it finds
    path = folder / EXAMPLES / Path(item.file).name
    if not inside(path, folder) or path.is_symlink() or not path.is_file():
        raise ResiDualError(
            f"wanted the picture {quoted(path)} of an image, which is missing or a link."
        )
    content = read_bytes(path, MAX_PICTURE)
    picture_suffix(content, quoted(path))
    return content
