"""Many tasks from one forward pass: each has its own gains and its own classes.

y' = base + (c ⊙ (λ − neutral)) Φ, where c, Φ and base are the same for every adapter over one basis
(`method.md`, section 3). So the backbone runs once, and a task costs a (B, K)·(K, d) product.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from ..data.images import load_image_processor, pixel_values
from ..data.inputs import Images, images_of
from ..errors import ResiDualError
from ..towers.captures import Capture
from ..towers.inputs import batch_size, checked_inputs
from ..towers.registry import base_model, find_tower
from ..towers.running import evaluating, run_tower
from ..tuner import (
    PREFIX,
    ReadoutState,
    ResiDualConfig,
    ResiDualReadout,
    active_adapter,
    base_of,
    check_directory,
    compose,
    coordinates_of,
    gains_of,
    load_adapter,
    readout_state,
)
from ..tuner.mixing import BASE, each_its_own, giving_names
from ..tuner.readout.layer import readouts
from ..tuner.snapshot import unchanged_if_refused
from .adapters import check_adapter, saved_adapters
from .files import (
    ClassifierRecord,
    load_base,
    local_classifier,
    origin_of,
    read_classes,
    read_described,
    settings_of,
)
from .outputs import pixel_batches
from .predictions import Prediction, predictions_of
from .zero_shot import ZeroShotClassifier, check_basis

BLOCK = 25
"""Tasks that share one product: with fewer, the directions are read too often."""

NameOrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class _Task:
    """One task."""

    classifier: ZeroShotClassifier
    adapter: str | None  # its name in the model; None for the model as it is
    owned: bool  # whether the adapter came, and goes, with the task

    def predictions(self, logits: Tensor) -> list[Prediction]:
        """What logits (N, C) say, one label per image or several, as the classifier has it."""
        classifier = self.classifier
        return predictions_of(logits, classifier.class_names, classifier.multi_label)


@dataclass(frozen=True)
class _Pass:
    """What one forward pass of the unadapted model left."""

    readout: Tensor  # y (B, d)
    capture: Capture | None  # None where no adapter was ever put in


class TaskSet:
    """Any number of tasks over one backbone, answered from one forward pass.

    A task is a `ZeroShotClassifier`: class names and embeddings, a logit scale, one label per image
    or several with a bias, and an adapter in readout mode, or none. Tasks over one basis share it,
    in memory and in the arithmetic; other bases are allowed, and cost a pass over the coordinates
    each. Adding and removing tasks changes no weights, and other outputs by rounding at most.

    Any number of threads may predict with one set; add and remove tasks while none does.

    Attributes:
        model: the backbone; a `PeftModel` as soon as one task has an adapter.
        image_processor: what turns images into pixel values, the same for all tasks.

    Examples:
        tasks = TaskSet.from_pretrained(["adapters/digits", "me/colours"])
        tasks.predict(image)["colours"].label
        tasks.predict_mixed([one, another], ["digits", "colours"])
    """

    def __init__(self, model: nn.Module, image_processor: Any = None) -> None:
        """Start without tasks.

        Args:
            model: an image tower or a dual encoder, or a `PeftModel` with ResiDual adapters in
                readout mode; its adapters become tasks only by `add`.
            image_processor: that of the first task that has one, when None.

        Raises:
            ResiDualError: an unknown architecture, or a model with adapters of another kind.
        """
        find_tower(model)
        for name, config in _configs(model).items():
            if not isinstance(config, ResiDualConfig) or config.mode != "readout":
                raise ResiDualError(
                    f"wanted a model with ResiDual adapters in readout mode or none, got one with "
                    f"{name!r}, {_kind(config)}, which changes the weights or the stream that "
                    "every task shares: load the base model afresh."
                )
        self.model: Any = model
        self.image_processor = image_processor
        self._tasks: dict[str, _Task] = {}

    @classmethod
    def from_pretrained(
        cls,
        names_or_paths: Iterable[NameOrPath] | Mapping[str, NameOrPath],
        *,
        model: nn.Module | None = None,
        device: torch.device | str | None = None,
        token: str | None = None,
    ) -> "TaskSet":
        """Load saved classifiers as tasks over one backbone.

        Args:
            names_or_paths: directories that `ZeroShotClassifier.save_pretrained` wrote, or Hub ids;
                by task name, or each named after the last part of its path.
            model: the backbone, where it is in hand already; else the one that the first names.
            device: where to.
            token: for private repositories.

        Raises:
            ResiDualError: none given, names that occur twice, or as `add`.
        """
        if isinstance(names_or_paths, str | os.PathLike):
            names_or_paths = [names_or_paths]
        if isinstance(names_or_paths, Mapping):
            wanted = list(names_or_paths.items())
        else:
            wanted = [(Path(path).name, path) for path in names_or_paths]
        if not wanted:
            raise ResiDualError("wanted at least one saved classifier, got none.")
        names = [name for name, _ in wanted]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ResiDualError(
                f"several of the tasks would be called {', '.join(map(repr, twice))}; name them: "
                "TaskSet.from_pretrained({'one name': path, 'another': path})."
            )
        if model is None:
            path = wanted[0][1]
            record = read_described(local_classifier(path, None, token), path)
            is_local = Path(path).expanduser().is_dir()
            model = load_base(record, token, is_local=is_local).eval()
        tasks = cls(model if device is None else model.to(device))
        for name, path in wanted:
            tasks.add(name, path, token=token)
        return tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def class_names(self, name: str) -> tuple[str, ...]:
        """The names of a task's C classes.

        Raises:
            ResiDualError: there is no such task.
        """
        return self._task(name).classifier.class_names

    def add(
        self,
        name: str,
        task: ZeroShotClassifier | NameOrPath,
        *,
        adapter_name: str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> None:
        """Add a task. No weight changes; other tasks' outputs stay, to rounding.

        Args:
            name: what to call it.
            task: a classifier over this set's model, whose class embeddings and gains are read when
                they are needed; or a directory that `ZeroShotClassifier.save_pretrained` wrote, or
                a Hub id, whose adapter is put into the model, and taken out by `remove`.
            adapter_name: the classifier's adapter; its model's active one when None.
            revision: branch, tag or commit on the Hub.
            token: for private repositories.

        Raises:
            ResiDualError: a name that is taken; another backbone or other image processing; an
                adapter of another kind or mode; or a file that is missing or not whole. The set is
                then as it was.
        """
        if not isinstance(name, str) or not name:
            raise ResiDualError(f"wanted a task's name, got {name!r}.")
        if name in self._tasks:
            raise ResiDualError(
                f"there is a task {name!r} already; give this one another name, or remove() that "
                "one first."
            )
        if isinstance(task, ZeroShotClassifier):
            self._check_processor(name, task.image_processor)
            added = _Task(task, self._adapter_of(name, task, adapter_name), owned=False)
        else:
            added = self._loaded(name, task, revision, token)
        if self.image_processor is None:
            self.image_processor = added.classifier.image_processor
        self._tasks[name] = added

    def remove(self, name: str) -> None:
        """Take a task out, and its adapter out of the model if `add` had put it in.

        Raises:
            ResiDualError: there is no such task.
        """
        task = self._task(name)
        del self._tasks[name]
        if task.owned:
            self._take_out(task.adapter)

    @torch.no_grad()
    def logits(
        self, pixels: Tensor | Mapping[str, Tensor], adapters: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Logits of each task for one batch, from one forward pass.

        Args:
            pixels: pixel values (B, C, H, W), or a mapping of what the model takes.
            adapters: names of tasks; None for all.

        Returns:
            Name -> (B, C_t), in float32 or better, on the model's device.

        Raises:
            ResiDualError: no tasks, or names that are not of tasks.
        """
        tasks = self._chosen(adapters)
        with evaluating(self.model):
            seen = self._run(pixels)
        answers = self._answers(list(tasks.values()), seen)
        return dict(zip(tasks, answers, strict=True))

    def predict_logits(
        self,
        images: Images,
        adapters: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
    ) -> dict[str, Tensor]:
        """Logits of one or many images for each task, on the CPU.

        Args:
            images: as for `predict`.
            adapters: names of tasks; None for all.
            batch_size: images per forward pass.

        Returns:
            Name -> (N, C_t).

        Raises:
            ResiDualError: as `predict`.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self._chosen(adapters)}
        items, _ = images_of(images)
        for pixels in pixel_batches(items, self.image_processor, batch_size):
            for name, logits in self.logits(pixels, list(parts)).items():
                parts[name].append(logits.cpu())
        return {name: torch.cat(logits) for name, logits in parts.items()}

    def predict(
        self,
        images: Images,
        adapters: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
    ) -> dict[str, Any]:
        """Classify images for each task, from one forward pass per batch.

        Args:
            images: one or many, a folder, a pattern or a dataset, as for
                `ZeroShotClassifier.predict`.
            adapters: names of tasks; None for all.
            batch_size: images per forward pass.

        Returns:
            Name -> a `Prediction` for one image, a list of them for many.

        Raises:
            ResiDualError: no tasks, names that are not of tasks, no images, or one that cannot be
                read (names it).
        """
        items, single = images_of(images)
        found = {
            name: self._task(name).predictions(logits)
            for name, logits in self.predict_logits(items, adapters, batch_size=batch_size).items()
        }
        return {name: made[0] for name, made in found.items()} if single else dict(found)

    @torch.no_grad()
    def predict_mixed(
        self,
        images: Images,
        adapters: Sequence[str],
        *,
        batch_size: int = 64,
    ) -> list[Prediction]:
        """Classify each image for a task of its own, whatever tasks share its batch.

        Args:
            images: as for `predict`.
            adapters: the name of a task for each image.
            batch_size: images per forward pass.

        Raises:
            ResiDualError: as `predict`, or more or fewer names than images.
        """
        items, _ = images_of(images)
        tasks = self._chosen(adapters)
        if len(adapters) != len(items):
            raise ResiDualError(
                f"wanted the name of a task for each of {len(items)} images, got {len(adapters)}; "
                "predict() answers every task for every image."
            )
        predictions: list[Prediction] = []
        for pixels in pixel_batches(items, self.image_processor, batch_size):
            start = len(predictions)
            names = adapters[start : start + len(pixels["pixel_values"])]
            own = [tasks[name] for name in names]
            with evaluating(self.model):
                seen = self._run(pixels)
            for task, logits in zip(own, self._mixed(own, seen), strict=True):
                predictions += task.predictions(logits.cpu())
        return predictions

    def _task(self, name: str) -> _Task:
        if name not in self._tasks:
            raise self._unknown([name])
        return self._tasks[name]

    def _unknown(self, names: Sequence[Any]) -> ResiDualError:
        known = f"the set has {', '.join(self._tasks)}" if self._tasks else "add() some first"
        return ResiDualError(f"there are no tasks {', '.join(map(repr, names))}; {known}.")

    def _chosen(self, adapters: Sequence[str] | None) -> dict[str, _Task]:
        tasks = dict(self._tasks)
        if isinstance(adapters, str):
            raise ResiDualError(f"adapters: wanted a list of tasks' names, got {adapters!r}.")
        names = list(tasks) if adapters is None else list(dict.fromkeys(adapters))
        if unknown := [name for name in names if name not in tasks]:
            raise self._unknown(unknown)
        if not names:
            raise ResiDualError("wanted at least one task, got none; add(name, classifier).")
        return {name: tasks[name] for name in names}

    def _run(self, pixels: Tensor | Mapping[str, Tensor]) -> _Pass:
        """Run the unadapted model, whatever adapters are active, for this thread alone."""
        anatomy = find_tower(self.model)
        inputs, side = checked_inputs(anatomy, pixels), anatomy.side
        layer = next((found for found in readouts(self.model) if found.anatomy.side == side), None)
        if layer is None:
            return _Pass(run_tower(self.model, inputs), None)
        with giving_names(self.model, [BASE] * batch_size(inputs)), _keeping(layer) as keep:
            readout = run_tower(self.model, inputs)
        return _Pass(readout, keep.capture)

    def _answers(self, tasks: list[_Task], seen: _Pass) -> list[Tensor]:
        """Logits (B, C_t) of each task."""
        answers: list[Tensor] = [seen.readout] * len(tasks)
        by_basis: dict[int, tuple[ReadoutState, list[int]]] = {}
        for index, task in enumerate(tasks):
            if task.adapter is None:
                answers[index] = task.classifier.answer(seen.readout, seen.readout)
            else:
                state = readout_state(self.model, task.adapter)
                by_basis.setdefault(id(state), (state, []))[1].append(index)
        for state, members in by_basis.values():
            assert seen.capture is not None
            coordinates, base = coordinates_of(state, seen.capture), base_of(state, seen.readout)
            # one for all blocks: fresh memory takes as long as filling it
            room = coordinates.new_empty((min(BLOCK, len(members)), *coordinates.shape))
            for start in range(0, len(members), BLOCK):
                block = members[start : start + BLOCK]
                gains = torch.stack([gains_of(self.model, tasks[i].adapter) for i in block])
                adapted = compose(state, base, coordinates, gains[:, None], room[: len(block)])
                for index, readout in zip(block, adapted, strict=True):
                    classifier = tasks[index].classifier
                    answers[index] = classifier.answer(readout, seen.readout, coordinates)
        return answers

    def _mixed(self, own: list[_Task], seen: _Pass) -> list[Tensor]:
        """Logits (1, C_t) of each image, which has its own task."""
        names = [BASE if task.adapter is None else task.adapter for task in own]
        used = dict.fromkeys(name for name in names if name != BASE)
        states = {name: readout_state(self.model, name) for name in used}
        gains: dict[str, Tensor] = {name: gains_of(self.model, name) for name in used}
        readouts = seen.readout
        coordinates: dict[str, Tensor] = {}
        if used:
            assert seen.capture is not None
            readouts = each_its_own(states, gains, names, seen.readout, seen.capture)
            needed = {
                t.adapter for t in own if t.classifier.head is not None and t.adapter is not None
            }
            coordinates = {name: coordinates_of(states[name], seen.capture) for name in needed}
        answers = []
        for row, task in enumerate(own):
            one = slice(row, row + 1)
            found = coordinates.get(task.adapter or BASE)
            found = None if found is None else found[one]
            answers.append(task.classifier.answer(readouts[one], seen.readout[one], found))
        return answers

    def _adapter_of(
        self, name: str, classifier: ZeroShotClassifier, adapter_name: str | None
    ) -> str | None:
        """The name of a classifier's adapter, checked; its model becomes the set's."""
        theirs, mine = classifier.model, self.model
        same = base_model(theirs) is base_model(mine)
        wrapped = isinstance(theirs, PeftModel)
        if not same or (wrapped and isinstance(mine, PeftModel) and theirs is not mine):
            raise ResiDualError(
                f"the classifier for the task {name!r} has another model than this set (a "
                f"{type(base_model(theirs)).__name__} of its own): make it over tasks.model, or "
                "save it and add its directory."
            )
        if not wrapped:
            if adapter_name is not None and adapter_name not in _configs(mine):
                raise ResiDualError(f"the model has no adapter {adapter_name!r}.")
            return adapter_name
        adapter = active_adapter(theirs) if adapter_name is None else adapter_name
        if adapter in theirs.peft_config:
            _check_kind(name, theirs.peft_config[adapter])
        readout_state(theirs, adapter)  # refuses one that is not there, or without its weights
        self.model = theirs
        return adapter

    def _loaded(
        self, name: str, source: NameOrPath, revision: str | None, token: str | None
    ) -> _Task:
        """A task from a directory or a Hub id, its adapter in the model."""
        directory = local_classifier(source, revision, token)
        record, embeddings, head = read_classes(directory, source)
        processor = None
        if any(directory.glob("*processor_config.json")):
            processor = load_image_processor(directory)
        self._check_processor(name, processor)
        place = self._place_of(name, record, directory)
        before = self.model
        with unchanged_if_refused(before):
            try:
                adapter = None if place is None else self._put_in(name, place)
                classifier = ZeroShotClassifier(
                    self.model,
                    record.class_names,
                    embeddings,
                    image_processor=processor,
                    **settings_of(record),
                )
                classifier.set_head(head, adapter)
                check_basis(classifier, record, source, adapter)
            except BaseException:
                self.model = before
                raise
        return _Task(classifier, adapter, owned=adapter is not None)

    def _place_of(self, name: str, record: ClassifierRecord, directory: Path) -> Path | None:
        """Where the one adapter lies that changes what a saved classifier says; None without."""
        adapters = saved_adapters(record, directory)
        found = []
        for adapter in adapters.active:
            place = directory / adapters.folders[adapter]
            check_adapter(place)
            check_directory(place)
            config = ResiDualConfig.from_pretrained(str(place))
            _check_kind(name, config)
            side = find_tower(base_model(self.model), config.side).side
            if side == find_tower(self.model).side:  # a text adapter changes no image
                found.append(place)
        if len(found) > 1:
            raise ResiDualError(
                f"the task {name!r} has {len(found)} adapters active at once, and a set answers "
                "with one for each task; predict with ZeroShotClassifier."
            )
        own = record.base_model, record.base_class
        if not found and own != (mine := origin_of(self.model)):
            raise ResiDualError(
                f"the task {name!r} has no adapter and belongs to {own[0]!r} ({own[1]}), and this "
                f"set's model is {mine[0]!r} ({mine[1]})."
            )
        return found[0] if found else None

    def _put_in(self, name: str, directory: Path) -> str:
        """Load an adapter beside those of the model, under the task's name where PEFT takes it."""
        taken = _configs(self.model)
        adapter, number = name, 0
        while adapter in taken or adapter == BASE or "." in adapter or adapter in PREFIX:
            adapter, number = f"task {number}", number + 1
        training = {module: module.training for module in self.model.modules()}
        mode = self.model.training
        try:
            self.model = load_adapter(self.model, directory, adapter)
        finally:  # PEFT puts all of it into eval mode
            for module in self.model.modules():
                module.training = training.get(module, mode)
        return adapter

    def _take_out(self, adapter: str | None) -> None:
        if list(_configs(self.model)) == [adapter]:
            self.model = self.model.unload()  # a PeftModel without an adapter does not work
        else:
            self.model.delete_adapter(adapter)

    def _check_processor(self, name: str, processor: Any) -> None:
        """Refuse a task that sees images otherwise than the others do."""
        mine = self.image_processor
        if mine is None or processor is None or mine is processor:
            return
        one, other = (_probe(each) for each in (mine, processor))
        if one.shape != other.shape or not torch.allclose(one, other, atol=1e-5):
            raise ResiDualError(
                f"the image processor of the task {name!r} gives other pixels than this set's: one "
                "forward pass needs one way to prepare images. Put it into a set of its own, or "
                "save it with the same image processor as the others."
            )


@dataclass
class _Keep:
    """A hook that keeps what the taps saw, of one thread's call."""

    thread: int
    capture: Capture | None = None

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        if threading.get_ident() == self.thread:
            self.capture = module.capture(args[0], output)


@contextmanager
def _keeping(layer: ResiDualReadout) -> Iterator[_Keep]:
    keep = _Keep(threading.get_ident())
    handle = layer.register_forward_hook(keep)
    try:
        yield keep
    finally:
        handle.remove()


def _configs(model: nn.Module) -> dict[str, Any]:
    return dict(model.peft_config) if isinstance(model, PeftModel) else {}


def _kind(config: Any) -> str:
    kind = getattr(config.peft_type, "value", config.peft_type)
    return f"mode={config.mode!r}" if isinstance(config, ResiDualConfig) else f"of type {kind}"


def _check_kind(name: str, config: Any) -> None:
    """Refuse an adapter whose task cannot be told from the unadapted model's forward pass."""
    if not isinstance(config, ResiDualConfig) or config.mode != "readout":
        raise ResiDualError(
            f"the adapter of the task {name!r} is {_kind(config)}: it changes what flows through "
            "the backbone, so that its task needs a forward pass of its own. Only mode='readout' "
            "shares one; predict with ZeroShotClassifier."
        )
    if config.modules_to_save:
        raise ResiDualError(
            f"the adapter of the task {name!r} has modules_to_save, whole modules of its own, so "
            "that its task needs a forward pass of its own; predict with ZeroShotClassifier."
        )


def _probe(processor: Any) -> Tensor:
    """What an image processor makes of one image: settings that change nothing do not count."""
    noise = np.random.default_rng(0).integers(0, 256, (97, 61, 3), np.uint8)
    return pixel_values(processor, [Image.fromarray(noise)])
