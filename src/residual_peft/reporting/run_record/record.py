"""`RunRecord`: save and load."""

import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...analysis.describing import Words
from ...data.images import PICTURE_SUFFIXES, picture_suffix
from ...errors import ResiDualError
from ...hub.directories import EXAMPLES, RECORD_JSON, RECORD_TENSORS, RUN_DIRECTORY
from ...hub.facts import Facts
from ...hub.files import (
    PathLike,
    atomic_directory,
    inside,
    path_of,
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
from ...towers.units import Unit
from .parts import Example, GainRecord
from .stored import FORMAT_VERSION, StoredExample, StoredGains, StoredRun

MAX_PICTURE = 2**20  # bytes


@dataclass(frozen=True)
class RunRecord:
    """N test images of C classes before and after an adapter, and how that adapter was made.

    ```python
    record = RunRecord.load("my-adapter")       # what `fit_adapter` left there
    write_report(record, "report.html")
    ```

    Attributes:
        class_names: C names.
        labels: (N,).
        before: logits without the adapter (N, C), float32.
        after: logits with it.
        facts: how it was made.
        gains: by unit, None where no unit has gains of its own (stream mode).
        words: for units and components; empty when nobody looked for them.
        examples: images that changed side.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    before: Tensor
    after: Tensor
    facts: Facts
    gains: GainRecord | None = None
    words: tuple[Words, ...] = ()
    examples: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.labels), len(self.class_names))
        for name in ("before", "after"):
            if getattr(self, name).shape != shape:
                raise ResiDualError(
                    f"wanted the logits {name} of shape {shape}, one row per test image and one "
                    f"column per class, got {tuple(getattr(self, name).shape)}."
                )
        if not len(self.labels) or int(self.labels.min()) < 0 or int(self.labels.max()) >= shape[1]:
            raise ResiDualError(f"wanted test images with labels from 0 to {shape[1] - 1}.")
        needed = ("model_name", "adapter", "method", "trained")
        if missing := [name for name in needed if getattr(self.facts, name) is None]:
            raise ResiDualError(f"wanted all facts of a fit, got no {missing[0]}.")
        if any(not 0 <= example.row < shape[0] for example in self.examples):
            raise ResiDualError(f"wanted examples among the {shape[0]} test images.")

    def save(self, directory: PathLike) -> None:
        """Write the record; pictures of an earlier one in the same place go.

        Args:
            directory: made if missing; `fit_adapter` takes `run` in the adapter's directory.
        """
        target = path_of(directory)
        # ties the two files to each other, should a crash leave one of an earlier run
        stamp = uuid.uuid4().hex
        names = [f"{x.row}{picture_suffix(x.image, 'an example')}" for x in self.examples]
        with atomic_directory(target) as folder:
            for name, example in zip(names, self.examples, strict=True):
                (folder / EXAMPLES).mkdir(exist_ok=True)
                (folder / EXAMPLES / name).write_bytes(example.image)
            write_tensors(folder / RECORD_TENSORS, self._tensors(), {"stamp": stamp})
            write_json(folder / RECORD_JSON, self._described(stamp, names))
        for path in (target / EXAMPLES).glob("*"):
            if path.name not in names and path.suffix in PICTURE_SUFFIXES.values():
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
                words=tuple(
                    Words(Unit.parse(item.unit), item.component, item.texts, item.explained)
                    for item in stored.words
                ),
                examples=_read_examples(stored.examples, folder),
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
        return tensors

    def _described(self, stamp: str, names: list[str]) -> dict[str, Any]:
        gains = self.gains
        return {
            "format_version": FORMAT_VERSION,
            "stamp": stamp,
            "class_names": list(self.class_names),
            "facts": self.facts.stored(),
            "gains": gains
            and {
                "units": [str(unit) for unit in gains.units],
                "counts": list(gains.counts),
                "rescaling_share": gains.rescaling_share,
                "settings_share": gains.settings_share,
            },
            "words": [asdict(words) | {"unit": str(words.unit)} for words in self.words],
            "examples": [
                {"row": example.row, "file": name}
                for example, name in zip(self.examples, names, strict=True)
            ],
        }


def _logits(tensors: dict[str, Tensor], folder: Path, classes: int) -> dict[str, Tensor]:
    """Labels (N,) and logits (N, C)."""
    path = folder / RECORD_TENSORS
    labels = tensor_of(tensors, "labels", path, None, whole=True)
    shape = (len(labels), classes)
    logits = {name: tensor_of(tensors, name, path, *shape) for name in ("before", "after")}
    return {"labels": labels.long(), **logits}


def _gains(stored: StoredGains, tensors: dict[str, Tensor], folder: Path) -> GainRecord:
    path, total = folder / RECORD_TENSORS, sum(stored.counts)
    names = ["gains", "share", "toward_label"]
    names += ["eigenvalues"] if "eigenvalues" in tensors else []
    return GainRecord(
        units=tuple(Unit.parse(name) for name in stored.units),
        counts=stored.counts,
        rescaling_share=stored.rescaling_share,
        settings_share=stored.settings_share,
        **{name: tensor_of(tensors, name, path, total) for name in names},
    )


def _read_examples(stored: tuple[StoredExample, ...], folder: Path) -> tuple[Example, ...]:
    found = []
    for item in stored:
        # a record may come from a stranger: neither a name nor a link must lead to other files of
        # this machine, as the report shows what it finds
        path = folder / EXAMPLES / Path(item.file).name
        if not inside(path, folder) or path.is_symlink() or not path.is_file():
            raise ResiDualError(
                f"wanted the picture {quoted(path)} of a test image, which is missing or a link."
            )
        content = read_bytes(path, MAX_PICTURE)
        picture_suffix(content, quoted(path))
        found.append(Example(item.row, content))
    return tuple(found)
