"""What is to be run, as data: a TOML file of models, data sets, methods and protocols.

One's own model or data set is one entry. A file holds no code, and every field is checked.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ...classifiers.prompts import DEFAULT_TEMPLATES
from ...data.class_names import check_class_names, check_templates
from ...errors import ResiDualError, check_names, short
from ...hub.files import PathLike, Within, path_of, quoted, read_bytes, record_of
from .fits import FITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAPER = Path(__file__).with_name("paper.toml")
"""The paper's seven models and ten data sets; what it says is where each fact comes from."""
MOST_BYTES = 2**20
ADVICE = "`residual-peft bench --help` says where an example of a registry lies."
WEIGHTS, OWN = "weights", "own"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
Share = Annotated[float, Within(0, 0.9)]
Seeds = Annotated[tuple[Annotated[int, Within(0, 2**31)], ...], Within(1, 1000)]
T = TypeVar("T")


@dataclass(frozen=True)
class ModelEntry:
    """A model.

    Attributes:
        source: a Hub id, a directory, or the bundled model's name.
        revision: branch, tag or commit on the Hub.
        coordinates: K of its heads and MLPs, for the plan; counted where the model is at hand.
        width: d of its readout, likewise.
        note: where these facts come from, for whoever reads the file.
    """

    source: str
    revision: str | None = None
    coordinates: Annotated[int, Within(1, 10**9)] | None = None
    width: Annotated[int, Within(1, 10**6)] | None = None
    note: str = ""


@dataclass(frozen=True)
class DataEntry:
    """A data set with one label per image.

    Attributes:
        source: what `load_data` takes by name: a Hub id, a folder, a table, an archive.
        revision: branch, tag or commit on the Hub.
        config: of a Hub data set that has several.
        image_column: found when None.
        label_column: found when None.
        splits: "train", "validation", "test" -> which of the source's to use; found when None.
        resplit: put all images together and cut them anew.
        validation: share of the training images to hold out where there is no such split.
        test: likewise.
        seed: of the splits that are cut.
        class_names: in the order of the labels; the data's own when None.
        templates: prompts.
        images: split -> how many, for the plan; counted where the data are at hand.
        note: where these facts come from, for whoever reads the file.
    """

    source: str
    revision: str | None = None
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    splits: dict[str, str] | None = None
    resplit: bool = False
    validation: Share = 0.1
    test: Share = 0.1
    seed: int = 42
    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    images: dict[str, Annotated[int, Within(1, 2**40)]] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        if self.class_names is not None:
            check_class_names(self.class_names)


@dataclass(frozen=True)
class Protocol:
    """Which training images a method gets, and what it is asked.

    Attributes:
        kind: "full": all of them; "shots": so many of each class, drawn anew with each seed;
            "base-to-novel": so many of each class of a random half of the classes, and the other
            half is asked for, too.
        shots: images of each class; with "base-to-novel" all when None.
        seeds: of the draws.
        without: methods that are left out, such as those that compare all images with all.
    """

    kind: Literal["full", "shots", "base-to-novel"]
    shots: Annotated[int, Within(1, 10**6)] | None = None
    seeds: Seeds = (0,)
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.without, FITS, "a method")
        if (self.kind == "shots" and not self.shots) or (self.kind == "full" and self.shots):
            raise ResiDualError(
                f"wanted shots with the kind 'shots', and none with 'full', got {self.kind!r} "
                f"with shots={self.shots}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ResiDualError(f"wanted each seed once, got {list(self.seeds)}")


@dataclass(frozen=True)
class Registry:
    """What is to be run: each model on each data set, by each method, in each protocol.

    Attributes:
        models: by name.
        data: by name.
        protocols: by name.
        methods: names of `fits.FITS`.
        basis: what the bases of a model are of: "weights", which need no images; the name of a
            data set, whose training images give them for all others (ImageNet in the paper); or
            "own", each data set's own training images. What is forgotten on other tasks is told
            where all share one.
        dtype: of the coordinates on disk.
        batch_size: images per forward pass.
        title: of the summary.
        for_bases: names of data sets that give bases and are no tasks.
    """

    models: dict[str, ModelEntry]
    data: dict[str, DataEntry]
    protocols: dict[str, Protocol]
    methods: tuple[str, ...] = tuple(FITS)
    basis: str = WEIGHTS
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch_size: Annotated[int, Within(1, 10**5)] = 64
    title: str = "Methods on frozen image towers"
    for_bases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, found in (("model", self.models), ("data set", self.data)):
            for name in (*found, *self.protocols):
                if not _NAME.fullmatch(name):
                    raise ResiDualError(
                        f"wanted a name of letters, digits, '.', '_', '+' and '-' for each {what} "
                        f"and protocol, got {short(name)}"
                    )
        check_names(self.for_bases, self.data, "a data set of the registry")
        if not (self.models and self.tasks and self.protocols and self.methods):
            raise ResiDualError("wanted at least one model, data set, protocol and method each")
        check_names(self.methods, FITS, "a method")
        if self.basis not in (WEIGHTS, OWN):
            check_names([self.basis], self.data, "a data set to fit bases on, 'weights' or 'own'")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the data sets that methods are run on."""
        return tuple(name for name in self.data if name not in self.for_bases)

    def only(
        self,
        models: Sequence[str] | None = None,
        data: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
    ) -> "Registry":
        """A part of it; None for all of a kind. A data set for the bases stays, for these alone.

        Raises:
            ResiDualError: a name that is not there.
        """
        asked = data or self.tasks
        kept = [*asked, *({self.basis} & {*self.data})]
        chosen = _some(self.data, kept, "a data set of the registry")
        check_names(methods or (), self.methods, "a method of the registry")
        return replace(
            self,
            models=_some(self.models, models, "a model of the registry"),
            data=chosen,
            protocols=_some(self.protocols, protocols, "a protocol of the registry"),
            methods=tuple(methods) if methods else self.methods,
            for_bases=tuple(name for name in chosen if name not in asked),
        )

    def digest(self, model: str, data: str, protocol: str | None = None) -> str:
        """Of all in the registry that a run's numbers depend on, beside method and seed.

        Without a protocol, of what a pair's coordinates depend on.
        """
        what = {
            "model": _facts(self.models[model]),
            "data": _facts(self.data[data]),
            "protocol": _facts(self.protocols[protocol]) if protocol else self.batch_size,
            "basis": _facts(self.data[self.basis]) if self.basis in self.data else self.basis,
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read_registry(path: PathLike = PAPER) -> Registry:
    """Read a registry, every field of it checked.

    A source that is a file or folder beside the registry is that one.

    Raises:
        ResiDualError: there is none, it is no TOML, or an entry does not fit; names the field.
    """
    where = path_of(path)
    try:
        found = tomllib.loads(read_bytes(where, MOST_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResiDualError(f"{quoted(where)} is not TOML ({error}).") from None
    registry = record_of(found, Registry, quoted(where), advice=ADVICE)
    return replace(
        registry,
        models={name: _beside(where, entry) for name, entry in registry.models.items()},
        data={name: _beside(where, entry) for name, entry in registry.data.items()},
    )


def _beside(registry: Path, entry: Any) -> Any:
    """The entry, its source as seen from the registry where it lies beside it."""
    near = registry.parent / entry.source
    return replace(entry, source=str(near)) if near.exists() else entry


def _some(entries: Mapping[str, T], names: Sequence[str] | None, what: str) -> dict[str, T]:
    check_names(names or (), entries, what)
    return {name: entry for name, entry in entries.items() if not names or name in names}


def _facts(entry: Any) -> dict[str, Any]:
    """An entry without what no number depends on."""
    left_out = ("note", "images", "coordinates", "width", "seeds", "without")
    names = {each.name for each in fields(entry)}.difference(left_out)
    return {name: value for name, value in asdict(entry).items() if name in names}
