"""What a tower takes of a batch, looked at before it is run."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ResiDualError
from .anatomy import TowerAnatomy

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
