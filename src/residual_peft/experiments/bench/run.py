"""A registry, run: what is finished stays, what fails is said in a line, and the rest goes on."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import torch

from ...data import ImageData
from ...data.metrics import accuracy
from ...errors import ResiDualError, counted, first_line, printable
from ...hub.machine import machine, versions
from ...hub.places import check_place
from .descent import Training
from .encoding import Pair, Tower
from .fits import Fitted, text_logits
from .given import Given, Queries, answers
from .images import draw, load_images, load_shifted, split_digest
from .machine import PACKAGES, watched_memory
from .methods import METHODS
from .registry import OWN, WEIGHTS, Registry
from .results import FILES, Key, Result, append, drop_half_line, read_results

Say = Callable[[str], object]
Run = tuple[str, str, str, int, str]
"""Model, data set, protocol, seed and method."""


def runs_of(registry: Registry) -> list[Run]:
    """All runs, in their order: what shares images, and a draw of them, comes together."""
    return [
        (model, data, name, seed, method)
        for model in registry.models
        for data in registry.tasks
        for name, protocol in registry.protocols.items()
        for seed in protocol.seeds
        for method in registry.methods
        if method not in protocol.without
    ]


def is_of(registry: Registry, result: Result) -> bool:
    """Whether a result is of the entries that a registry has now."""
    model, data, protocol, *_ = result.key
    known = model in registry.models and data in registry.data and protocol in registry.protocols
    return known and result.registry == registry.digest(model, data, protocol)


def _key(registry: Registry, run: Run) -> Key:
    """Of the result of a run."""
    model, data, protocol, seed, method = run
    return model, data, protocol, method, seed, registry.digest(model, data, protocol)


def _process() -> tuple[int, int]:
    """The number of this process, and how many there are: as torchrun's environment says."""
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not rank and not world:
        return 0, 1
    if not rank.isdecimal() or not world.isdecimal() or int(rank) >= int(world):
        raise ResiDualError(
            "wanted RANK below WORLD_SIZE in the environment, or neither of them, "
            f"got '{rank}' and '{world}'."
        )
    return int(rank), int(world)


def run_registry(
    registry: Registry, out: str | os.PathLike[str], *, resume: bool = False, say: Say = print
) -> list[Result]:
    """Run what is not finished yet, one JSON line for each run as soon as it is.

    Under `accelerate launch` each process takes every so-many-th pair of model and data set, on an
    accelerator of its own, and writes a file of its own. Coordinates lie in the folder meanwhile;
    without `resume` there may be no results in it yet. Gives all results of the folder; `say` is
    called with a line for what is done and for what is left out.

    Raises:
        ResiDualError: there are results already, the folder cannot be written, or RANK and
            WORLD_SIZE do not name one of several processes.
    """
    folder = check_place(out)
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = _process()
    own = [f"-{number}" if world > 1 else "" for number in range(world)]
    files = [folder / FILES.replace("*", name) for name in own]
    # what processes of this launch write meanwhile is none of an earlier one
    beside = {*files} - {files[rank]}
    there = [path for path in sorted(folder.glob(FILES)) if path not in beside]
    if there and not resume:
        raise ResiDualError(
            f"'{there[0]}' holds results already: go on with --resume, or name another --out."
        )
    if drop_half_line(files[rank]):
        say("A killed run left half a line, which was dropped.")
    done = {result.key: result.split for result in read_results(folder)}
    bench = _Bench(registry, files[rank], folder / f"coordinates{own[rank]}", say, done)
    pairs = [(model, data) for model in registry.models for data in registry.tasks]
    mine = set(pairs[rank::world])
    todo = [run for run in runs_of(registry) if run[:2] in mine and _key(registry, run) not in done]
    say(f"{counted(len(todo), 'run')} to do, {counted(len(done), 'run')} done.")
    for part in registry.by_basis():
        runs = [run for run in todo if run[2] in part.protocols]
        for model in dict.fromkeys(run[0] for run in runs):
            with bench.spared(model):
                of_basis = replace(bench, registry=part)
                of_basis.run_model(model, [run for run in runs if run[0] == model])
    return read_results(folder)


@dataclass
class _Bench:
    """What is shared by the runs of a registry."""

    registry: Registry
    file: Path
    place: Path
    say: Say
    done: dict[Key, str]  # of finished runs the digest of their images
    loaded: dict[str, ImageData | ResiDualError] = field(default_factory=dict)
    # of the one model and basis that are run: each part of the registry has its own
    pairs: dict[str, Pair] = field(default_factory=dict, init=False)

    @contextmanager
    def spared(self, what: str) -> Iterator[None]:
        """What fails in the block is said, and the rest runs."""
        try:
            yield
        except (ResiDualError, RuntimeError, MemoryError) as error:
            self.say(printable(f"left out: {what}: {first_line(error)}"))

    def images(self, data: str) -> ImageData:
        """A data set, loaded once; what failed is not tried again.

        Raises:
            ResiDualError: as `load_images`.
        """
        if data not in self.loaded:
            try:
                self.loaded[data] = load_images(self.registry.data[data])
            except ResiDualError as error:
                self.loaded[data] = error
        found = self.loaded[data]
        if isinstance(found, ResiDualError):
            raise found
        return found

    def run_model(self, model: str, todo: list[Run]) -> None:
        """All runs of one model."""
        basis = self.registry.basis
        of = None if basis in (WEIGHTS, OWN) else self.images(basis)
        folder = self.place / model
        tower = Tower.of(self.registry.models[model], self.registry, folder, of)
        for data in dict.fromkeys(run[1] for run in todo):
            with self.spared(f"{model} on {data}"):
                pair = self.pair(tower, model, data)
                old = self.outdated(pair, model, data)
                self.run_pair(pair, [*(run for run in todo if run[1] == data), *old])
                pair.forget()
        shutil.rmtree(folder, ignore_errors=True)

    def outdated(self, pair: Pair, model: str, data: str) -> list[Run]:
        """Finished runs of a pair that is loaded, on other images than it has now: to do again.

        Else what is run now would stand alone, as no table compares methods on different images.
        """
        split = split_digest(pair.images)
        found = [
            run
            for run in runs_of(self.registry)
            if run[:2] == (model, data) and self.done.get(_key(self.registry, run), split) != split
        ]
        if found:
            what = f"{model} on {data}, of other images than there are now"
            self.say(printable(f"{counted(len(found), 'run')} again: {what}."))
        return found

    def pair(self, tower: Tower, model: str, data: str) -> Pair:
        """A pair, made once; what was read for other entries lies elsewhere."""
        if data not in self.pairs:
            images, entry = self.images(data), self.registry.data[data]
            folder = tower.folder / f"{data}-{self.registry.digest(model, data)}"
            shifted = {}
            for name in entry.shifted:
                with self.spared(f"{name}, shifted images of {data}"):
                    shifted[name] = load_shifted(self.registry.data[name], images)
            self.pairs[data] = Pair(tower, images, entry, self.registry, folder, shifted)
        return self.pairs[data]

    def run_pair(self, pair: Pair, todo: list[Run]) -> None:
        """All runs of one model on one data set, those of one draw on the same rows."""
        for name, seed in dict.fromkeys((run[2], run[3]) for run in todo):
            protocol = self.registry.protocols[name]
            with self.spared(f"{todo[0][0]} on {todo[0][1]}, {name}, seed {seed}"):
                labels = torch.tensor(pair.images.train["label"])
                count = len(pair.images.class_names)
                given = Given.of(pair, protocol, draw(protocol, labels, count, seed))
                for run in (run for run in todo if run[2:4] == (name, seed)):
                    with self.spared(", ".join(map(str, run))):
                        self.run_one(pair, given, run)

    def run_one(self, pair: Pair, given: Given, run: Run) -> None:
        """Fit, measure and keep."""
        model, data, protocol, seed, method = run
        with watched_memory() as memory:
            started = time.perf_counter()
            fitted = METHODS[method](Training(given.rows, given.learned, seed))
            seconds = time.perf_counter() - started
        result = Result(
            *_key(self.registry, run),
            **given.measured(fitted),
            trained=fitted.trained,
            bytes=fitted.bytes,
            encoding_seconds=pair.seconds,
            fitting_seconds=seconds,
            peak_memory=memory.peak,
            mean_memory=memory.mean,
            accelerator_memory=memory.accelerator,
            images=given.counts,
            split=split_digest(pair.images),
            weights=pair.tower.weights,
            class_names=pair.images.class_names,
            templates=pair.entry.templates if pair.tower.has_text else (),
            basis=self.registry.basis,
            forgotten=self.forgotten(fitted, model, pair),
            curve={
                f"{t:g}": self.on_the_way(part, given, model, pair)
                for t, part in fitted.curve.items()
            },
            notes=fitted.notes,
            versions=versions(PACKAGES),
            machine=machine(),
        )
        append(self.file, result)
        self.say(
            f"{model} on {data}, {protocol}, seed {seed}, {method}: {result.accuracy:.3f} "
            f"({seconds:.1f} s)"
        )

    def forgotten(self, fitted: Fitted, model: str, pair: Pair) -> dict[str, tuple[float, float]]:
        """Zero-shot accuracy on other tasks before and after, where the embedding changed."""
        found: dict[str, tuple[float, float]] = {}
        if fitted.adapted is None or self.registry.basis == OWN or not pair.tower.has_text:
            return found
        for data in self.registry.tasks:
            with suppress(ResiDualError):  # what is missing was said where it is a task itself
                other = self.pair(pair.tower, model, data)
                if other is not pair:
                    labels, texts = other.store("test").labels, other.texts
                    queries = Queries(other.store("test"), other.images_of("test"))
                    parts = [
                        (
                            text_logits(texts, part.readout),
                            text_logits(texts, fitted.adapted(fitted.encoded(part, images))),
                        )
                        for part, images in queries.chunks()
                    ]
                    before, after = map(torch.cat, zip(*parts, strict=True))
                    found[data] = accuracy(before, labels), accuracy(after, labels)
        return found

    def on_the_way(self, fitted: Fitted, given: Given, model: str, pair: Pair) -> tuple[float, ...]:
        """A point of a curve: accuracy on the test images, and the mean of it on other tasks."""
        told = accuracy(answers(fitted, given.test), given.test.data.labels)
        others = self.forgotten(fitted, model, pair).values()
        return (told, mean(after for _, after in others)) if others else (told,)
