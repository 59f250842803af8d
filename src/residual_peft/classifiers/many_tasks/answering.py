"""One forward pass of the unadapted model, and what each task makes of it."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...towers.captures import Capture
from ...towers.registry import find_tower
from ...towers.running import batch_size, checked_inputs, run_tower
from ...tuner import (
    ReadoutState,
    ResiDualReadout,
    base_of,
    compose,
    coordinates_of,
    gains_of,
    readout_state,
)
from ...tuner.mixing import BASE, each_its_own, giving_names
from ...tuner.readout.layer import readouts
from ..predictions import Prediction, predictions_of
from ..zero_shot import ZeroShotClassifier

BLOCK = 25  # tasks that share one product: with fewer, the directions are read too often


@dataclass(frozen=True)
class Task:
    """One task."""

    classifier: ZeroShotClassifier
    adapter: str | None  # its name in the model; None for the model as it is
    owned: bool  # whether the adapter came, and goes, with the task

    def predictions(self, logits: Tensor) -> list[Prediction]:
        """What logits (N, C) say, one label per image or several, as the classifier has it."""
        classifier = self.classifier
        return predictions_of(
            logits, classifier.class_names, classifier.multi_label, thresholds=classifier.thresholds
        )


class Pass(NamedTuple):
    """What one forward pass of the unadapted model left."""

    readout: Tensor  # y (B, d)
    capture: Capture | None  # what its units wrote; None where no adapter was ever put in


def run(model: nn.Module, pixels: Tensor | Mapping[str, Tensor]) -> Pass:
    """Run the unadapted model, whatever adapters are active, for this thread alone."""
    anatomy = find_tower(model)
    inputs, side = checked_inputs(anatomy, pixels), anatomy.side
    layer = next((found for found in readouts(model) if found.anatomy.side == side), None)
    if layer is None:
        return Pass(run_tower(model, inputs), None)
    with giving_names(model, [BASE] * batch_size(inputs)), _keeping(layer) as kept:
        readout = run_tower(model, inputs)
    return Pass(readout, kept[0] if kept else None)


def answers_of(model: nn.Module, tasks: list[Task], passed: Pass) -> list[Tensor]:
    """Logits (B, C_t) of each task."""
    readout, capture = passed
    answers = [readout] * len(tasks)
    by_basis: dict[int, tuple[ReadoutState, list[int]]] = {}
    for index, task in enumerate(tasks):
        if task.adapter is None:
            answers[index] = task.classifier.answer(readout, readout)
        else:
            state = readout_state(model, task.adapter)
            by_basis.setdefault(id(state), (state, []))[1].append(index)
    for state, members in by_basis.values():
        assert capture is not None
        coordinates, base = coordinates_of(state, capture), base_of(state, readout)
        # one for all blocks: fresh memory takes as long as filling it
        room = coordinates.new_empty((min(BLOCK, len(members)), *coordinates.shape))
        for start in range(0, len(members), BLOCK):
            block = members[start : start + BLOCK]
            gains = torch.stack([gains_of(model, tasks[i].adapter) for i in block])
            adapted = compose(state, base, coordinates, gains[:, None], room[: len(block)])
            for index, own in zip(block, adapted, strict=True):
                answers[index] = tasks[index].classifier.answer(own, readout, coordinates)
    return answers


def mixed(model: nn.Module, own: list[Task], passed: Pass) -> list[Tensor]:
    """Logits (1, C_t) of each image, which has its own task."""
    readout, capture = passed
    names = [BASE if task.adapter is None else task.adapter for task in own]
    used = dict.fromkeys(name for name in names if name != BASE)
    states = {name: readout_state(model, name) for name in used}
    gains: dict[str, Tensor] = {name: gains_of(model, name) for name in used}
    adapted = readout
    coordinates: dict[str, Tensor] = {}
    if used:
        assert capture is not None
        adapted = each_its_own(states, gains, names, readout, capture)
        needed = {t.adapter for t in own if t.classifier.head is not None and t.adapter is not None}
        coordinates = {name: coordinates_of(states[name], capture) for name in needed}
    answers = []
    for row, task in enumerate(own):
        one = slice(row, row + 1)
        found = coordinates.get(task.adapter or BASE)
        found = None if found is None else found[one]
        answers.append(task.classifier.answer(adapted[one], readout[one], found))
    return answers


@contextmanager
def _keeping(layer: ResiDualReadout) -> Iterator[list[Capture]]:
    """What the layer's taps see last of this thread's calls, once there is something."""
    thread = threading.get_ident()
    kept: list[Capture] = []

    def keep(module: Any, args: Any, output: Any = None) -> None:
        y = output[0] if isinstance(output, tuple) else output
        # BLIP calls its norm once more, on a token: as the layer itself, look at all tokens alone
        elsewhere = y is not None and not module.anatomy.readout.holds(y)
        if threading.get_ident() == thread and not elsewhere:
            kept[:] = [module.capture(args[0], y)]

    anatomy = layer.anatomy
    if anatomy.projection is None or anatomy.whole:  # it travels with what comes out
        handle = layer.register_forward_hook(keep)
    else:  # with what goes in, or it waits for the layer, which drops what no adapter wants
        handle = layer.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
