"""What goes into a classifier's model, and where its readout is in what comes out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..data.images import ImageLike, to_rgb
from ..data.passes import no_processor
from ..data.processors import model_inputs
from ..errors import ResiDualError
from ..towers.registry import find_tower
from ..towers.running import read_tokens


def readout_of(outputs: Any, model: nn.Module | None = None) -> Tensor:
    """The readouts (B, d) in a model's output, or the tensor that they are already.

    Without `model`, a tower whose readout is one of its tokens is not known as such.

    Raises:
        ResiDualError: they are not there.
    """
    if isinstance(outputs, Tensor):
        return outputs
    anatomy = None if model is None else find_tower(model)
    tokens = anatomy is not None and anatomy.reads_tokens and anatomy.side == "image"
    inside = getattr(outputs, "vision_model_output", None)
    if tokens and inside is not None:  # of a dual encoder that was given texts, too
        outputs = inside
    for name in ("image_embeds", "last_hidden_state" if tokens else "pooler_output"):
        value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if not isinstance(value, Tensor):
            continue
        if anatomy is None or name != "last_hidden_state":
            return value
        if anatomy.mask is not None:
            raise ResiDualError(
                f"the readout of {anatomy.architecture} depends on {anatomy.mask}, which a "
                "model output does not hold: call the dual encoder, or its tower through "
                "run_tower(model, inputs)."
            )
        return read_tokens(anatomy, value, {})
    if anatomy is not None and tokens:
        raise ResiDualError(
            f"wanted a model output with last_hidden_state, got {type(outputs).__name__}: the "
            f"readout of {anatomy.architecture} is made of its tokens, which a head for image "
            "classification leaves out; load the bare tower, such as ViTModel."
        )
    raise ResiDualError(
        f"wanted a model output with image_embeds or pooler_output, got {type(outputs).__name__}; "
        "a bare CLIPModel needs texts to run, an adapted one does not."
    )


def pixel_batches(
    items: Sequence[ImageLike], image_processor: Any, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """What a model takes of all images, at most batch_size of them at a time, in their order."""
    if not items:
        raise ResiDualError("wanted at least one image to classify, got none.")
    if image_processor is None:
        raise no_processor()
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        images = [to_rgb(item, f"image {start + i}") for i, item in enumerate(batch)]
        yield model_inputs(image_processor, images)
