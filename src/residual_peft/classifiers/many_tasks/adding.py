"""Tasks that come and go: their adapters in the model, and what one set cannot hold."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import nn

from ...data.processors import load_image_processor, pixel_values
from ...errors import ResiDualError
from ...towers.registry import base_model, find_tower
from ...tuner import (
    PREFIX,
    ResiDualConfig,
    active_adapter,
    adapted_tower,
    check_directory,
    load_adapter,
    readout_state,
)
from ...tuner.loading import unchanged_if_refused
from ...tuner.mixing import BASE, takes_name
from ..adapters import saved_adapters
from ..backbones import origin_of
from ..files import ClassifierRecord, local_classifier, read_classes, settings_of
from ..saving import check_basis
from ..zero_shot import ZeroShotClassifier
from .answering import Task

NameOrPath = str | os.PathLike[str]


def by_name(paths: Iterable[NameOrPath] | Mapping[str, NameOrPath]) -> list[tuple[str, NameOrPath]]:
    """Tasks' names and where each lies; what has no name is called after the end of its path.

    Raises:
        ResiDualError: none given, or names that occur twice.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if isinstance(paths, Mapping):
        wanted = list(paths.items())
    else:
        wanted = [(Path(path).name, path) for path in paths]
    if not wanted:
        raise ResiDualError("wanted at least one saved classifier, got none.")
    names = [name for name, _ in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ResiDualError(
            f"several of the tasks would be called {', '.join(map(repr, twice))}; name them: "
            "TaskSet.from_pretrained({'one name': path, 'another': path})."
        )
    return wanted


def adapter_of(
    mine: nn.Module, name: str, classifier: ZeroShotClassifier, adapter_name: str | None
) -> tuple[str | None, nn.Module]:
    """The name of a classifier's adapter, None for the active one, checked; and its model."""
    theirs = classifier.model
    same = base_model(theirs) is base_model(mine)
    wrapped = isinstance(theirs, PeftModel)
    if not same or (wrapped and isinstance(mine, PeftModel) and theirs is not mine):
        raise ResiDualError(
            f"the classifier for the task {name!r} has another model than this set (a "
            f"{type(base_model(theirs)).__name__} of its own): make it over tasks.model, or "
            "save it and add its directory."
        )
    if not wrapped:
        if adapter_name is not None and adapter_name not in configs_in(mine):
            raise ResiDualError(f"the model has no adapter {adapter_name!r}.")
        return adapter_name, mine
    adapter = active_adapter(theirs) if adapter_name is None else adapter_name
    if adapter in theirs.peft_config:
        check_kind(name, theirs.peft_config[adapter])
    readout_state(theirs, adapter)  # refuses one that is not there, or without its weights
    if adapted_tower(theirs, adapter).side != find_tower(mine).side:
        return None, theirs  # a text adapter changes no image
    return adapter, theirs


def loaded(
    model: nn.Module,
    image_processor: Any,
    name: str,
    source: NameOrPath,
    revision: str | None,
    token: str | None,
) -> tuple[Task, nn.Module]:
    """A task from a directory or a Hub id, and the set's model with its adapter in.

    Raises:
        ResiDualError: as `TaskSet.add`; the model is then as it was.
    """
    directory = local_classifier(source, revision, token)
    record, embeddings, head, _ = read_classes(directory, source)
    processor = None
    if any(directory.glob("*processor_config.json")):
        processor = load_image_processor(directory)
    check_processor(image_processor, name, processor)
    place = _place_of(model, name, record, directory)
    with unchanged_if_refused(model):
        adapter, own = (None, model) if place is None else _put_in(model, name, place)
        classifier = ZeroShotClassifier(
            own, record.class_names, embeddings, image_processor=processor, **settings_of(record)
        )
        classifier.set_head(head, adapter)
        check_basis(classifier, record, source, adapter)
    return Task(classifier, adapter, owned=adapter is not None), own


def _place_of(
    model: nn.Module, name: str, record: ClassifierRecord, directory: Path
) -> Path | None:
    """Where the one adapter lies that changes what a saved classifier says; None without."""
    adapters = saved_adapters(record, directory)
    found = []
    for adapter in adapters.active:
        place = directory / adapters.folders[adapter]
        check_directory(place)
        config = ResiDualConfig.from_pretrained(str(place))
        check_kind(name, config)
        side = find_tower(base_model(model), config.side).side
        if side == find_tower(model).side:  # a text adapter changes no image
            found.append(place)
    if len(found) > 1:
        raise ResiDualError(
            f"the task {name!r} has {len(found)} adapters active at once, and a set answers "
            "with one for each task; predict with ZeroShotClassifier."
        )
    own = record.base_model, record.base_class
    if not found and own != (mine := origin_of(model)):
        raise ResiDualError(
            f"the task {name!r} has no adapter and belongs to {own[0]!r} ({own[1]}), and this "
            f"set's model is {mine[0]!r} ({mine[1]})."
        )
    return found[0] if found else None


def _put_in(model: nn.Module, name: str, directory: Path) -> tuple[str, nn.Module]:
    """Load an adapter beside those of the model, under the task's name where PEFT takes it."""
    taken = configs_in(model)
    adapter, number = name, 0
    while adapter in taken or adapter == BASE or not takes_name(adapter) or adapter in PREFIX:
        adapter, number = f"task {number}", number + 1
    training = {module: module.training for module in model.modules()}
    mode, own = model.training, model
    try:
        own = load_adapter(model, directory, adapter)
    finally:  # PEFT puts all of it into eval mode
        for module in own.modules():
            module.training = training.get(module, mode)
    return adapter, own


def without(model: Any, adapter: str | None) -> nn.Module:
    """The model without an adapter."""
    if list(configs_in(model)) == [adapter]:
        return model.unload()  # a PeftModel without an adapter does not work
    model.delete_adapter(adapter)
    return model


def check_processor(mine: Any, name: str, processor: Any) -> None:
    """Refuse a task that sees images otherwise than the others do."""
    if mine is None or processor is None or mine is processor:
        return
    # by what they make of one image: settings that change nothing do not count
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 61, 3), np.uint8))
    one, other = (pixel_values(each, [noise]) for each in (mine, processor))
    if one.shape != other.shape or not torch.allclose(one, other, atol=1e-5):
        raise ResiDualError(
            f"the image processor of the task {name!r} gives other pixels than this set's: one "
            "forward pass needs one way to prepare images. Put it into a set of its own, or "
            "save it with the same image processor as the others."
        )


def configs_in(model: nn.Module) -> dict[str, Any]:
    """Name -> config of a model's adapters."""
    return dict(model.peft_config) if isinstance(model, PeftModel) else {}


def kind_of(config: Any) -> str:
    """What an adapter is, in words."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    return f"mode={config.mode!r}" if isinstance(config, ResiDualConfig) else f"of type {kind}"


def check_modes(model: nn.Module) -> None:
    """Refuse a backbone with adapters that change what every task reads."""
    for name, config in configs_in(model).items():
        if not isinstance(config, ResiDualConfig) or config.mode != "readout":
            raise ResiDualError(
                f"wanted a model with ResiDual adapters in readout mode or none, got one with "
                f"{name!r}, {kind_of(config)}, which changes the weights or the stream that "
                "every task shares: load the base model afresh."
            )


def check_kind(name: str, config: Any) -> None:
    """Refuse an adapter whose task cannot be told from the unadapted model's forward pass."""
    if not isinstance(config, ResiDualConfig) or config.mode != "readout":
        raise ResiDualError(
            f"the adapter of the task {name!r} is {kind_of(config)}: it changes what flows through "
            "the backbone, so that its task needs a forward pass of its own. Only mode='readout' "
            "shares one; predict with ZeroShotClassifier."
        )
    if config.modules_to_save:
        raise ResiDualError(
            f"the adapter of the task {name!r} has modules_to_save, whole modules of its own, so "
            "that its task needs a forward pass of its own; predict with ZeroShotClassifier."
        )
