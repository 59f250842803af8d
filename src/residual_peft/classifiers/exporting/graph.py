"""A classifier as one module of torch, so that a tracer sees all that leads to a probability."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ResiDualError
from ...towers.registry import find_tower
from ...towers.running import evaluating, run_tower, unadapted
from ...towers.taps import tapped
from ...tuner import ResiDualReadout, ResiDualStreamLinear, adapted_tower
from ..zero_shot import ZeroShotClassifier

LARGEST = 2**31 - 2**24
"""Bytes of weights: one file of protobuf holds 2 GiB, of which names and shapes take a little."""


class ClassifierGraph(nn.Module):
    """Pixel values (B, 3, H, W) -> probabilities and logits, (B, C) each.

    The functions are those of `ZeroShotClassifier.classified`. One adapter in readout mode is
    computed from what the taps see, with a class head on its coordinates or without; gains in the
    weights are merged; whatever else is active runs as the model has it.

    Attributes:
        model: the classifier's own.
        classifier: whose classes, head, scale and temperature they are.
    """

    def __init__(self, classifier: ZeroShotClassifier) -> None:
        super().__init__()
        self.model: Any = classifier.model
        self.classifier = classifier
        head = classifier.head
        self.reads_units = (
            _one_readout_adapter(self.model) if head is None else head.features == "coordinates"
        )
        self.plain = head is not None and head.features == "embedding"
        self.anatomy = adapted_tower(self.model) if self.reads_units else find_tower(self.model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As the classifier's `classified` answers."""
        with tapped(self.anatomy) if self.reads_units else nullcontext() as tap:
            readout = run_tower(self.model, {"pixel_values": pixels}, anatomy=self.anatomy)
            capture = None if tap is None else tap.take()
        logits = self.classifier.answer_to(readout, capture)
        return self.classifier.labelling.probabilities(logits), logits

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Adapters, dropout, gradients and torch's fused paths as the forward wants them."""
        streams = (m for m in self.model.modules() if isinstance(m, ResiDualStreamLinear))
        layers = [m for m in streams if not (self.plain or m.merged or m.disable_adapters)]
        fused = torch.backends.mha.get_fastpath_enabled()
        with torch.no_grad(), evaluating(self), ExitStack() as undone:
            for layer in layers:
                layer.merge()
                undone.callback(layer.unmerge)  # of those before one that fails as well
            undone.callback(torch.backends.mha.set_fastpath_enabled, fused)
            torch.backends.mha.set_fastpath_enabled(False)  # one operator that nobody else has
            with unadapted(self.model) if self.reads_units or self.plain else nullcontext():
                yield


def in_float32(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """The classifier itself, or a copy on the CPU in float32."""
    first = next(classifier.model.parameters())
    if first.dtype == torch.float32 and first.device.type == "cpu":
        return classifier
    found = copy(classifier)
    found.model = deepcopy(classifier.model).float()
    found.class_embeddings = classifier.class_embeddings.float()
    return found.to("cpu")


def check_size(graph: ClassifierGraph) -> None:
    """Refuse an image tower above 2 GiB in float32, before any work that takes long."""
    parts = [graph.anatomy.tower, graph.anatomy.projection]
    modules = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
    total = sum(tensor.numel() * 4 for tensor in modules.parameters())
    if total > LARGEST:
        raise ResiDualError(
            f"one ONNX file holds at most 2 GiB, and the weights of the image tower take "
            f"{total / 2**30:.1f} GiB in float32: fit on a smaller model."
        )


def _one_readout_adapter(model: nn.Module) -> bool:
    """Whether all that is active on the image tower is one adapter in readout mode."""
    layers = [m for m in model.modules() if isinstance(m, ResiDualReadout)]
    active = [name for layer in layers for name in layer.active_adapters if layer.has(name)]
    on_images = all(layer.anatomy.side == "image" for layer in layers)
    return on_images and len(active) == 1 and not layers[0].disable_adapters
