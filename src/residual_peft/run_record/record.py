"""`RunRecord`: save and load."""

import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..anatomy import Unit
from ..describing import Words
from ..errors import ResiDualError
from ..files import PathLike, atomic_directory, read_json, read_tensors, write_json, write_tensors
from ..hub import RUN_DIRECTORY
from ..images import PICTURE_SUFFIXES, picture_suffix
from .parts import Example, GainRecord, RunFacts

RECORD_JSON = "run.json"
RECORD_TENSORS = "run.safetensors"
EXAMPLES = "examples"
FORMAT_VERSION = 1


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
    facts: RunFacts
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
        if any(not 0 <= example.row < shape[0] for example in self.examples):
            raise ResiDualError(f"wanted examples among the {shape[0]} test images.")

    def save(self, directory: PathLike) -> None:
        """Write the record; pictures of an earlier one in the same place go.

        Args:
            directory: made if missing; `fit_adapter` takes `run` in the adapter's directory.
        """
        target = Path(directory)
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
        given = Path(directory)
        folder = next(
            (f for f in (given, given / RUN_DIRECTORY) if (f / RECORD_JSON).is_file()), None
        )
        if folder is None:
            raise ResiDualError(
                f"wanted a directory with the record of a fit ({RUN_DIRECTORY}/{RECORD_JSON}), got "
                f"'{given}', which has none; `residual-peft fit` leaves one beside its adapter."
            )
        described, path = read_json(folder / RECORD_JSON), folder / RECORD_JSON
        version = described.get("format_version") if isinstance(described, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ResiDualError(
                f"'{path}' was written by a newer residual-peft (format {version}, this one reads "
                f"{FORMAT_VERSION}); update the package."
            )
        tensors, metadata = read_tensors(folder / RECORD_TENSORS)
        try:
            if described["stamp"] != metadata.get("stamp"):
                raise ValueError(f"{RECORD_TENSORS} is of another run")
            return cls(**_read(described, tensors), examples=_read_examples(described, folder))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = error if isinstance(error, ValueError) else f"it lacks or misuses {error}"
            raise ResiDualError(
                f"'{path}' is no whole record of a fit: {why} Fit the adapter again, or restore "
                "the directory."
            ) from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"labels": self.labels.long()}
        tensors |= {"before": self.before.float(), "after": self.after.float()}
        if self.gains is not None:
            tensors |= {name: tensor.float() for name, tensor in self.gains.tensors().items()}
        return tensors

    def _described(self, stamp: str, names: list[str]) -> dict[str, Any]:
        gains = self.gains
        return {
            "format_version": FORMAT_VERSION,
            "stamp": stamp,
            "class_names": list(self.class_names),
            "facts": asdict(self.facts),
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


def _read(described: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of a `RunRecord`, the examples apart."""
    facts = described["facts"]
    gains = described["gains"]
    return {
        "class_names": tuple(described["class_names"]),
        "labels": tensors["labels"],
        "before": tensors["before"],
        "after": tensors["after"],
        "facts": RunFacts(**{**facts, "templates": tuple(facts["templates"])}),
        "gains": gains
        and GainRecord(
            units=tuple(Unit.parse(name) for name in gains["units"]),
            counts=tuple(gains["counts"]),
            gains=tensors["gains"],
            share=tensors["share"],
            toward_label=tensors["toward_label"],
            rescaling_share=float(gains["rescaling_share"]),
            settings_share=float(gains["settings_share"]),
            eigenvalues=tensors.get("eigenvalues"),
        ),
        "words": tuple(
            Words(
                unit=Unit.parse(item["unit"]),
                component=item["component"],
                texts=tuple((str(text), float(value)) for text, value in item["texts"]),
                explained=item["explained"],
            )
            for item in described["words"]
        ),
    }


def _read_examples(described: dict[str, Any], folder: Path) -> tuple[Example, ...]:
    found = []
    for item in described["examples"]:
        # a record may come from a stranger: a name must not lead to other files of this machine
        path = folder / EXAMPLES / Path(item["file"]).name
        if not path.is_file() or path.is_symlink():
            raise ResiDualError(f"wanted the picture '{path}' of a test image, which is missing.")
        content = path.read_bytes()
        picture_suffix(content, f"'{path}'")
        found.append(Example(int(item["row"]), content))
    return tuple(found)
