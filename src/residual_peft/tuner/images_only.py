"""A dual encoder that takes images alone, so that the Trainer needs no text beside them."""

import inspect
from typing import Any

from torch import nn
from transformers.models.clip.modeling_clip import CLIPOutput

from ..anatomy import TowerAnatomy, find_tower
from ..decomposition import run_tower
from ..errors import ResiDualError
from ..open_clip_towers import is_open_clip


class ImagesOnlyForward:
    """Stands in for a dual encoder's `forward`: images without text give `image_embeds` alone.

    The image embeddings are the readout as it is, unnormalized, as `CLIPVisionModelWithProjection`
    gives it; with text, the model's own forward runs. PEFT calls the base model and never the
    tuner's forward, which is why this sits on the base model. Survives copying and pickling.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.before = model.__dict__.get("forward")  # such as accelerate's
        self.tower: TowerAnatomy | None = None  # where `get_image_features` is not its readout

    @property
    def __signature__(self) -> inspect.Signature:
        """The model's own: the Trainer picks columns by it."""
        signature = inspect.signature(type(self.model).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the image side alone where there is no text."""
        names = list(self.__signature__.parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.get("input_ids") is not None or given.get("pixel_values") is None:
            if self.before is not None:
                return self.before(*args, **kwargs)
            return type(self.model).forward(self.model, *args, **kwargs)
        options = {
            name: value
            for name, value in given.items()
            if value is not None
            and name not in ("attention_mask", "position_ids", "return_loss", "return_dict")
        }
        output = CLIPOutput(image_embeds=self._embeds(options))
        return output.to_tuple() if given.get("return_dict") is False else output

    def _embeds(self, options: dict[str, Any]) -> Any:
        if self.tower is None:
            features: Any = self.model.get_image_features(**options)
            return getattr(features, "pooler_output", features)
        options.pop("use_itm_head", None)  # BlipForImageTextRetrieval's, for texts
        named = {name: options.pop(name) for name in self.tower.inputs if name in options}
        return run_tower(self.model, named, anatomy=self.tower, **options)


def accept_images_alone(model: nn.Module) -> None:
    """Let a dual encoder's forward take images alone; other models are left as they are."""
    dual = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    dual |= hasattr(model, "vision_proj") and hasattr(model, "text_proj")
    if not (dual or is_open_clip(model)):
        return
    if not isinstance(model.__dict__.get("forward"), ImagesOnlyForward):
        model.forward = ImagesOnlyForward(model)
    forward: Any = model.forward
    forward.tower = _unusual_tower(model)


def _unusual_tower(model: nn.Module) -> TowerAnatomy | None:
    """Find the image tower where its readout is not what `get_image_features` gives.

    Not while the model runs: `torch.compile` would have to follow it.
    """
    try:
        anatomy = find_tower(model, "image")
    except ResiDualError:  # stream mode adapts what it does not know
        return None
    usual = hasattr(model, "get_image_features") and not anatomy.reads_tokens
    return None if usual else anatomy


def restore_forward(model: nn.Module) -> None:
    """Undo `accept_images_alone`."""
    forward = model.__dict__.get("forward")
    if isinstance(forward, ImagesOnlyForward):
        del model.forward
        if forward.before is not None:
            model.forward = forward.before
