"""One run of a tower: its own readout, with or without adapters and dropout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from ..errors import ResiDualError
from .anatomy import TowerAnatomy
from .inputs import named_inputs
from .registry import find_tower


@contextmanager
def unadapted(model: nn.Module) -> Iterator[None]:
    """Run a model without its adapters, dropout off, while the block runs.

    Merged adapters are part of the weights and stay. Not for a model that other threads are using:
    they would lose their adapters for as long.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # not at the top: `registration`

    adapted = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and not (module.disable_adapters or module.merged)
    ]
    for module in adapted:
        # not enable_adapters(False): that would also switch requires_grad, and not switch it back
        module._disable_adapters = True
    try:
        with evaluating(model):
            yield
    finally:
        for module in adapted:
            module._disable_adapters = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off while the block runs; a model in eval mode, which threads may share, is left."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run_tower(
    model: nn.Module, inputs: Any, *, anatomy: TowerAnatomy | None = None, **options: Any
) -> Tensor:
    """Run the model's own readout, unnormalized and with its adapters: (B, d).

    Args:
        model: the model.
        inputs: `pixel_values` (B, C, H, W), `input_ids` (B, T) of a text tower, or a mapping that
            holds what the tower takes (`TowerAnatomy.inputs`).
        anatomy: which of its towers and readouts; None what its adapter adapts, or the image tower.
        options: for the model's forward, such as `interpolate_pos_encoding=True`.
    """
    anatomy = find_tower(model) if anatomy is None else anatomy
    given = {**named_inputs(anatomy, inputs), **options}
    try:
        return (anatomy.read or _own_readout)(anatomy, given)
    except ValueError as error:
        if "image size" not in str(error):
            raise
        height, width = given["pixel_values"].shape[-2:]
        raise ResiDualError(
            f"this model does not take images of {height} x {width} pixels ({error}): prepare them "
            "with its own image processor, or set crop_size in preprocessor_config.json to its "
            "image_size."
        ) from error


def _own_readout(anatomy: TowerAnatomy, given: Mapping[str, Any]) -> Tensor:
    """Read from the tower's tokens, by `get_image_features`, or from the output of the model."""
    model: Any = anatomy.model
    if anatomy.reads_tokens:
        tokens = cast(Any, anatomy.tower)(**given, return_dict=True).last_hidden_state
        return read_tokens(anatomy, tokens, given)
    features: Any = getattr(model, f"get_{anatomy.side}_features", model)
    output = features(**given, return_dict=True)
    if features is not model:
        return output if isinstance(output, Tensor) else output.pooler_output
    name = "pooler_output" if anatomy.projection is None else f"{anatomy.side}_embeds"
    found: Tensor | None = getattr(output, name, None)
    return output.pooler_output if found is None else found


def read_tokens(anatomy: TowerAnatomy, tokens: Tensor, given: Mapping[str, Any]) -> Tensor:
    """The readout (B, d) that the normed tokens (B, T, d) hold."""
    return anatomy.readout.read(tokens, anatomy.readout.locate((), given))
