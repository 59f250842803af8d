"""What is to be run, as data: a TOML file of models, data sets, methods and protocols.

One's own model or data set is one entry. A file holds no code, and every field is checked.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ...errors import ResiDualError, check_names, short
from ...hub.files import PathLike, Within, is_file, path_of, quoted, read_bytes, record_of
from .entries import DataEntry, ModelEntry, Protocol, Published
from .methods import METHODS, USUAL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = {
    name: Path(__file__).with_name(f"{name}.toml") for name in ("paper", "fusionbench", "coop")
}
"""Registries that come with the package; each says where its facts come from."""
PAPER = SHIPPED["paper"]
"""The paper's seven models and ten data sets."""
MOST_BYTES = 2**20
ADVICE = "`residual-peft bench --help` says where an example of a registry lies."
WEIGHTS, OWN = "weights", "own"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_LATER = ("shifted", "subgroups", "subgroup_names", "corruptions", "severities", "validation_shots")
"""Fields that came after results were kept: where they ask for nothing, those results hold."""
T = TypeVar("T")


@dataclass(frozen=True)
class Registry:
    """What is to be run: each model on each data set, by each method, in each protocol."""

    models: dict[str, ModelEntry]  # by name
    data: dict[str, DataEntry]  # by name
    protocols: dict[str, Protocol]  # by name
    # names of `methods.METHODS`; when left out all but those that train the backbone
    methods: tuple[str, ...] = USUAL
    # what the bases of a model are of: "weights", which need no images; the name of a data set,
    # whose training images give them for all others (ImageNet in the paper); or "own", each data
    # set's own training images. A protocol may have another. What is forgotten on other tasks is
    # told where all share one
    basis: str = WEIGHTS
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the coordinates on disk
    batch_size: Annotated[int, Within(1, 10**5)] = 64  # images per forward pass
    title: str = "Methods on frozen image towers"  # of the summary
    # names of data sets that are no tasks: they give bases, or test images that are shifted ones of
    # others
    aside: tuple[str, ...] = ()
    # what others have measured, by the name of a row
    published: dict[str, Published] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, found in (("model", self.models), ("data set", self.data)):
            for name in (*found, *self.protocols):
                if not _NAME.fullmatch(name):
                    raise ResiDualError(
                        f"wanted a name of letters, digits, '.', '_', '+' and '-' for each {what} "
                        f"and protocol, got {short(name)}"
                    )
        check_names(self.aside, self.data, "a data set of the registry")
        if not (self.models and self.tasks and self.protocols and self.methods):
            raise ResiDualError("wanted at least one model, data set, protocol and method each")
        check_names(self.methods, METHODS, "a method")
        others = {*self.bases} - {WEIGHTS, OWN}
        check_names(others, self.data, "a data set to fit bases on, 'weights' or 'own'")
        for name, entry in self.data.items():
            check_names(entry.shifted, {*self.data} - {name}, "another data set of the registry")
        for row in self.published.values():
            check_names([row.model], self.models, "a model of the registry")
            check_names(row.protocols, self.protocols, "a protocol of the registry")
            for figures in row.accuracy.values():
                check_names(figures, self.tasks, "a task of the registry")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the data sets that methods are run on."""
        return tuple(name for name in self.data if name not in self.aside)

    @property
    def bases(self) -> tuple[str, ...]:
        """What bases are of in any protocol, the registry's first."""
        own = (protocol.basis for protocol in self.protocols.values() if protocol.basis)
        return tuple(dict.fromkeys((self.basis, *own)))

    def by_basis(self) -> "list[Registry]":
        """Parts with one basis in all protocols, by which the rows of a model have one adapter."""
        found = []
        for basis in self.bases:
            own = {n: p for n, p in self.protocols.items() if (p.basis or self.basis) == basis}
            if own:
                found.append(replace(self, basis=basis, protocols=own, published={}))
        return found

    def only(
        self,
        models: Sequence[str] | None = None,
        data: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
    ) -> "Registry":
        """A part of it; None for all of a kind. Data sets that it needs stay, and are no tasks.

        Raises:
            ResiDualError: a name that is not there.
        """
        asked = data or self.tasks
        ours = _some(self.protocols, protocols, "a protocol of the registry")
        theirs = _some(self.models, models, "a model of the registry")
        check_names(methods or (), self.methods, "a method of the registry")
        tasks = _some(self.data, asked, "a data set of the registry")
        bases = (self.basis, *(protocol.basis for protocol in ours.values()))
        needed = [*tasks, *(name for name in bases if name in self.data)]
        for name in needed:  # grows by what those are shifted to
            needed += [other for other in self.data[name].shifted if other not in needed]
        chosen = {name: entry for name, entry in self.data.items() if name in needed}
        published = {
            name: figures
            for name, row in self.published.items()
            if row.model in theirs
            and (figures := row.of(ours, tasks, whole={*tasks} == {*self.tasks}))
        }
        return replace(
            self,
            models=theirs,
            data=chosen,
            protocols=ours,
            methods=tuple(methods) if methods else self.methods,
            aside=tuple(name for name in chosen if name not in asked),
            published=published,
        )

    def digest(self, model: str, data: str, protocol: str | None = None) -> str:
        """Of all in the registry that a run's numbers depend on, beside method and seed.

        Without a protocol, of what a pair's coordinates depend on.
        """
        basis = (self.protocols[protocol].basis if protocol else None) or self.basis
        what = {
            "model": _facts(self.models[model]),
            "data": _facts(self.data[data]),
            "protocol": _facts(self.protocols[protocol]) if protocol else self.batch_size,
            "basis": _facts(self.data[basis]) if basis in self.data else basis,
            "dtype": self.dtype,
        }
        if protocol and (others := self.data[data].shifted):
            what["shifted"] = {name: _facts(self.data[name]) for name in others}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read_registry(path: PathLike = PAPER) -> Registry:
    """Read a registry, every field of it checked: a TOML file, or else a name of `SHIPPED`.

    A source that is a file or folder beside the registry is that one.

    Raises:
        ResiDualError: there is none, it is no TOML, or an entry does not fit; names the field.
    """
    where = path_of(path)
    if not is_file(where) and not where.suffix:
        check_names(
            [str(path)], SHIPPED, "a TOML file, nor a registry that comes with this package"
        )
        where = SHIPPED[str(path)]
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
    return replace(entry, source=str(near.absolute())) if near.exists() else entry


def _some(entries: Mapping[str, T], names: Sequence[str] | None, what: str) -> dict[str, T]:
    check_names(names or (), entries, what)
    return {name: entry for name, entry in entries.items() if not names or name in names}


def _facts(entry: Any) -> dict[str, Any]:
    """An entry without what no number depends on."""
    left_out = {"note", "classes", "images", "coordinates", "width", "seeds", "without", "basis"}
    if not getattr(entry, "corruptions", ()):
        left_out.add("severities")
    left_out |= {name for name in _LATER if not getattr(entry, name, None)}
    found = {name: value for name, value in asdict(entry).items() if name not in left_out}
    if os.path.isabs(found.get("source", "")):  # rows count wherever the folder lies
        found["source"] = Path(found["source"]).name
    return found
