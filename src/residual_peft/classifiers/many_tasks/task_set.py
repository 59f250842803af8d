"""Tasks over one backbone, by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.inputs import Images, images_of
from ...errors import ResiDualError
from ...towers.registry import find_tower
from ...towers.running import evaluating
from ..backbones import load_base
from ..files import local_classifier, read_described
from ..outputs import pixel_batches
from ..predictions import Prediction
from ..zero_shot import ZeroShotClassifier
from .adding import NameOrPath, adapter_of, by_name, check_modes, check_processor, loaded, without
from .answering import Task, answers_of, mixed, run


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
        check_modes(model)
        self.model: Any = model
        self.image_processor = image_processor
        self._tasks: dict[str, Task] = {}

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
        wanted = by_name(names_or_paths)
        if model is None:
            path = wanted[0][1]
            record = read_described(local_classifier(path, None, token), path)
            model = load_base(record, path, token).eval()
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
            check_processor(self.image_processor, name, task.image_processor)
            adapter, self.model = adapter_of(self.model, name, task, adapter_name)
            added = Task(task, adapter, owned=False)
        else:
            added, self.model = loaded(
                self.model, self.image_processor, name, task, revision, token
            )
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
            self.model = without(self.model, task.adapter)

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
            passed = run(self.model, pixels)
        answers = answers_of(self.model, list(tasks.values()), passed)
        return dict(zip(tasks, answers, strict=True))

    def predict_logits(
        self, images: Images, adapters: Sequence[str] | None = None, *, batch_size: int = 64
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
        self, images: Images, adapters: Sequence[str] | None = None, *, batch_size: int = 64
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
        self, images: Images, adapters: Sequence[str], *, batch_size: int = 64
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
                passed = run(self.model, pixels)
            for task, logits in zip(own, mixed(self.model, own, passed), strict=True):
                predictions += task.predictions(logits.cpu())
        return predictions

    def _task(self, name: str) -> Task:
        return self._chosen([name])[name]

    def _chosen(self, adapters: Sequence[str] | None) -> dict[str, Task]:
        tasks = dict(self._tasks)
        if isinstance(adapters, str):
            raise ResiDualError(f"adapters: wanted a list of tasks' names, got {adapters!r}.")
        names = list(tasks) if adapters is None else list(dict.fromkeys(adapters))
        if unknown := [name for name in names if name not in tasks]:
            known = f"the set has {', '.join(tasks)}" if tasks else "add() some first"
            raise ResiDualError(f"there are no tasks {', '.join(map(repr, unknown))}; {known}.")
        if not names:
            raise ResiDualError("wanted at least one task, got none; add(name, classifier).")
        return {name: tasks[name] for name in names}
