"""What the layers of both modes share: frozen tensors, never rounded, kept once when equal."""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .modes import ordinary

GAINS = "residual_peft_gains"

WAITS = (
    "the adapter {!r} was made from a saved adapter's config and waits for the weights beside it; "
    "load both with PeftModel.from_pretrained, or start anew from config.fresh()."
)


class ResiDualLayer(BaseTunerLayer):
    """What PEFT looks for when it walks over an adapted model: a layer of either mode."""

    adapter_settings: dict[str, Any]


def without_rounding(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let `function` of `Module._apply` move tensors, but not round them, nor part shared ones."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # the first keeps its id from being reused

    def apply(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            result = function(tensor)
            rounded = result.dtype != tensor.dtype and result.element_size() < 4
            if rounded and result.is_floating_point():
                result = tensor.to(result.device)
            seen[id(tensor)] = tensor, result
        return seen[id(tensor)][1]

    return apply


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether one tensor could stand for both."""
    return one is other or (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and torch.equal(one, other)
    )


def own_gains(layer: Any, adapter_name: str) -> None:
    """Let an adapter's gains be trained that were loaded by assignment in inference mode."""
    gains = getattr(layer, GAINS)[adapter_name]
    if gains.is_inference():
        copied = nn.Parameter(ordinary(gains), requires_grad=gains.requires_grad)
        getattr(layer, GAINS)[adapter_name] = copied
