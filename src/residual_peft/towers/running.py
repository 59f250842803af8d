"""One run of a tower: what it takes of a batch, looked at before, and its own readout.

Adapters and dropout are on or off while it runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from ..errors import ResiDualError
from .anatomy import TowerAnatomy
from .registry import find_tower

OPTIONS = ("interpolate_pos_encoding",)  # of a forward pass, beside its tensors


def named_inputs(anatomy: TowerAnatomy, batch: Any) -> dict[str, Any]:
    """What a tower takes of a batch: of a mapping its `inputs`, a tensor as the first of them.

    A mapping may also say `interpolate_pos_encoding`: images of another size than the model's.
    """
    first = anatomy.inputs[0]
    if isinstance(batch, Mapping):
        found = {name: batch[name] for name in anatomy.inputs if batch.get(name) is not None}
        if first not in found:
            mend = "image processor" if anatomy.side == "image" else "tokenizer"
            raise ResiDualError(
                f"a batch holds {sorted(map(str, batch))} and no {first!r}: run the "
                f"{anatomy.side}s through the model's {mend}."
            )
        return found | {name: batch[name] for name in OPTIONS if batch.get(name)}
    if not isinstance(batch, Tensor):
        raise ResiDualError(
            f"wanted {first} as a tensor, or a mapping that holds it, got a {type(batch).__name__}."
        )
    return {first: batch}


def checked_inputs(anatomy: TowerAnatomy, batch: Any) -> dict[str, Any]:
    """The same on the tower's device, refused where pixels or ids are not as they should be."""
    given = named_inputs(anatomy, batch)
    first = given[anatomy.inputs[0]]
    if anatomy.side == "text":
        if not isinstance(first, Tensor) or first.ndim != 2 or first.is_floating_point():
            raise ResiDualError(
                f"wanted input_ids as whole numbers of shape (texts, tokens), got {_kind(first)}: "
                'run the texts through the tokenizer with padding=True and return_tensors="pt".'
            )
    else:
        check_pixels(first, patches="spatial_shapes" in anatomy.inputs)
    device = anatomy.layers[0].output_projection.weight.device
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def batch_size(inputs: Mapping[str, Any]) -> int:
    """The number of samples in what `checked_inputs` gave."""
    return len(next(iter(inputs.values())))


def check_pixels(pixel_values: Tensor, *, patches: bool = False) -> None:
    """Refuse pixels that are not finite floats (B, C, H, W), or cut in `patches` (B, N, C·p·p)."""
    kind = "patches, values" if patches else "channels, height, width"
    if (
        not isinstance(pixel_values, Tensor)
        or pixel_values.ndim != (3 if patches else 4)
        or not pixel_values.is_floating_point()
        or not len(pixel_values)
    ):
        raise ResiDualError(
            f"wanted pixel_values as floats of shape (images, {kind}), got {_kind(pixel_values)}: "
            "run the images through the model's image processor."
        )
    finite = pixel_values.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ResiDualError(
            f"pixel_values hold NaN or infinite values in {len(bad)} of {len(finite)} images of "
            f"the batch (first: image {bad[0]}); look at how they were decoded and normalized."
        )


def _kind(value: Any) -> str:
    tensor = isinstance(value, Tensor)
    return f"{value.dtype} of shape {tuple(value.shape)}" if tensor else f"a {type(value).__name__}"


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
    arguments = {**named_inputs(anatomy, inputs), **options}
    try:
        return (anatomy.read or _own_readout)(anatomy, arguments)
    except ValueError as error:
        if "image size" not in str(error):
            raise
        height, width = arguments["pixel_values"].shape[-2:]
        raise ResiDualError(
            f"this model does not take images of {height} x {width} pixels ({error}): prepare them "
            "with its own image processor, or set crop_size in preprocessor_config.json to its "
            "image_size."
        ) from error


def _own_readout(anatomy: TowerAnatomy, arguments: Mapping[str, Any]) -> Tensor:
    """Read from the tower's tokens, by `get_image_features`, or from the output of the model."""
    model: Any = anatomy.model
    if anatomy.reads_tokens:
        tokens = cast(Any, anatomy.tower)(**arguments, return_dict=True).last_hidden_state
        return read_tokens(anatomy, tokens, arguments)
    features: Any = getattr(model, f"get_{anatomy.side}_features", model)
    output = features(**arguments, return_dict=True)
    if features is not model:
        return output if isinstance(output, Tensor) else output.pooler_output
    name = "pooler_output" if anatomy.projection is None else f"{anatomy.side}_embeds"
    found: Tensor | None = getattr(output, name, None)
    return output.pooler_output if found is None else found


def read_tokens(anatomy: TowerAnatomy, tokens: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The readout (B, d) that the normed tokens (B, T, d) hold."""
    return anatomy.readout.read(tokens, anatomy.readout.locate((), arguments))
