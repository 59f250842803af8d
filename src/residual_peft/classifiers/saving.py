"""A classifier as files: adapter, classes, head, statistics, image processor and model card."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import nn

from ..data.processors import load_image_processor
from ..errors import ResiDualError
from ..hub.directories import CARD
from ..hub.facts import Facts
from ..hub.files import atomic_directory, path_of
from ..towers.registry import base_model
from ..tuner import basis_digest
from ..tuner.loading import unchanged_if_refused
from .adapters import Adapters, load_adapters, saved_adapters, write_adapters
from .backbones import device_of, load_base, origin_of
from .cards import adapter_facts, is_ours, write_card
from .files import (
    ROWS,
    STATISTICS,
    ClassifierRecord,
    local_classifier,
    of_the_old,
    read_classes,
    read_fitted_on,
    same_adapter,
    settings_of,
    write_classes,
    write_fitted_on,
)
from .kept import KeptStatistics, head_digest, load_rows, save_rows
from .trained_head import TrainedHead

if TYPE_CHECKING:
    from .zero_shot import ZeroShotClassifier

logger = logging.getLogger(__name__)


def save(
    classifier: "ZeroShotClassifier",
    directory: str | os.PathLike[str],
    card: Facts | None,
    location: str | None,
    head_bytes: int | None,
) -> Path:
    """Write a classifier; arguments are those of `ZeroShotClassifier.save_pretrained`."""
    head = _within(classifier.head, head_bytes)
    target, adapters = path_of(directory), Adapters.of(classifier.model)
    record = _described(classifier, adapters)
    there = target / CARD
    old: list[str] = []
    with atomic_directory(target, gone=old) as folder:
        if there.is_file() and not is_ours(there):
            (folder / CARD).write_bytes(there.read_bytes())
            if isinstance(classifier.model, PeftModel):  # it says there what PEFT's cards say
                classifier.model.create_or_update_model_card(str(folder))
        write_adapters(classifier.model, adapters, folder)
        if classifier.image_processor is not None:
            classifier.image_processor.save_pretrained(folder)
        same = head is classifier.head  # else what is saved gives other scores
        held_out = classifier.held_out if same else None
        write_classes(folder, record, classifier.class_embeddings, head, held_out)
        write_fitted_on(folder, target, classifier.fitted_on)
        digest = "" if head is None else head_digest(head.tensors())
        sums, rows = classifier.statistics, classifier.without
        rows = None if head is not None and head.low_rank else rows  # of another ridge by then
        writers = {
            STATISTICS: None if sums is None else sums.save,
            ROWS: None if rows is None else partial(save_rows, rows),
        }
        for name, write in writers.items():
            if write is not None and digest:
                write(folder / name, digest)
            elif (target / name).is_file():  # of the head that is replaced
                old.append(name)
        if not there.is_file() or is_ours(there):
            where = location or target.resolve().name
            facts = adapter_facts(classifier.model, record, head, card or Facts(), where)
            write_card(classifier.model, folder, facts)
        old += of_the_old(target, record=not same_adapter(folder, target))
    return target


def _within(head: TrainedHead | None, budget: int | None) -> TrainedHead | None:
    """The head in so many bytes."""
    if head is None or budget is None or head.bytes <= budget:
        return head
    small = head.within(budget)
    logger.warning(
        "the class head of %.0f MB is saved in %.0f MB (%s): measure what is saved, or give "
        "head_bytes=None%s",
        head.bytes / 1e6,
        small.bytes / 1e6,
        small.described,
        "; it keeps nothing of left-out images, so calibrate what is saved for sets of classes"
        if small.low_rank
        else "",
    )
    return small


def _described(classifier: "ZeroShotClassifier", adapters: Adapters) -> ClassifierRecord:
    name, kind = origin_of(classifier.model)
    return ClassifierRecord(
        class_names=classifier.class_names,
        templates=classifier.templates,
        logit_scale=classifier.logit_scale,
        base_model=name,
        base_class=kind,
        dtype=str(next(base_model(classifier.model).parameters()).dtype).split(".")[-1],
        adapted=bool(adapters.folders),
        multi_label=classifier.multi_label,
        logit_bias=classifier.logit_bias,
        split=classifier.split,
        adapters=dict(adapters.folders) if adapters.folders else None,
        active=adapters.active,
        head=None
        if classifier.head is None
        else classifier.head.record(classifier.basis_of_head()),
    )


def load(
    cls: type["ZeroShotClassifier"],
    name_or_path: str | os.PathLike[str],
    model: nn.Module | None,
    device: torch.device | str | None,
    is_trainable: bool,
    revision: str | None,
    token: str | None,
) -> "ZeroShotClassifier":
    """Read what `save` wrote; arguments are those of `ZeroShotClassifier.from_pretrained`."""
    directory = local_classifier(name_or_path, revision, token)
    record, embeddings, head, held_out = read_classes(directory, name_or_path)
    adapters = saved_adapters(record, directory)
    named = any(directory.glob("*processor_config.json"))
    processor = load_image_processor(directory) if named else None
    if model is None:
        model = load_base(record, name_or_path, token)
    with unchanged_if_refused(model):
        if adapters.folders:
            model = load_adapters(model, adapters, directory, is_trainable=is_trainable)
        classifier = cls(
            model.train(is_trainable),
            record.class_names,
            embeddings,
            image_processor=processor,
            **settings_of(record),
        )
        classifier.head = head
        check_basis(classifier, record, name_or_path)
        sums, rows = directory / STATISTICS, directory / ROWS
        if head is not None and (sums.is_file() or rows.is_file()):
            digest = head_digest(head.tensors())
            if sums.is_file():
                classifier._statistics = partial(KeptStatistics.load, sums, digest)
            if rows.is_file():
                sides = len(head.head.mean), head.class_count
                classifier._without = partial(load_rows, rows, digest, *sides)
        if held_out is not None:
            classifier.held_out = held_out
    classifier.split, classifier.fitted_on = record.split, read_fitted_on(directory)
    return classifier if device is None else classifier.to(device_of(device))


def check_basis(
    classifier: "ZeroShotClassifier",
    record: ClassifierRecord,
    name: object,
    adapter: str | None = None,
) -> None:
    """Raise a ResiDualError where a saved head reads coordinates in another basis than is there."""
    wanted = None if record.head is None else record.head.basis
    if wanted is not None and basis_digest(classifier.model, adapter) not in (wanted, None):
        raise ResiDualError(
            f"the class head of '{name}' was fitted on coordinates in another basis than its "
            "adapter has: the files do not belong together. Save or download the classifier again."
        )
