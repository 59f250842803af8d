"""A dual encoder that takes images alone, so that the Trainer needs no text beside them.

PEFT calls the base model and never the tuner's forward, so the forward that takes images alone has
to be the base model's. It is a method of a subclass that takes the place of the model's class, and
no attribute of the instance: what copies a module's attributes into another one
(`torch.nn.parallel.replicate`, accelerate's `compile_regions`) would take such an attribute along,
bound to the first model, and what wraps and unwraps `forward` (accelerate's mixed precision) wants
a plain method. The subclass has its parent's name and module, by which transformers and PEFT write
down what a model is, and pickles as its parent.
"""

import inspect
from dataclasses import replace
from functools import cache
from types import MethodType
from typing import Any

from torch import nn
from transformers.models.clip.modeling_clip import CLIPOutput

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.families.open_clip import is_open_clip
from ..towers.registry import find_tower
from ..towers.running import run_tower
from .layer import adapter_layers

OWN = "_residual_peft_own_class"  # of the subclass: its parent
BEFORE = "_residual_peft_forward"  # of the model: a forward that others set on it before, if any
TOWER = "_residual_peft_tower"  # of the model: where `get_image_features` is not its readout
NOT_FOR_IMAGES = ("attention_mask", "position_ids", "return_loss", "return_dict")


def accept_images_alone(model: nn.Module) -> None:
    """Let a dual encoder's forward take images alone; other models are left as they are.

    Images without text give `image_embeds` alone: the readout as it is, unnormalized, as
    `CLIPVisionModelWithProjection` gives it. With text the model's own forward runs.
    """
    dual = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    dual |= hasattr(model, "vision_proj") and hasattr(model, "text_proj")
    if not (dual or is_open_clip(model)):
        return
    own: Any = type(model)
    if not hasattr(own, OWN):
        before = model.__dict__.pop("forward", None)  # such as accelerate's
        model.__class__ = _taking_images(own)
        if before is not None:
            model.__dict__[BEFORE] = before
    model.__dict__[TOWER] = _unusual_tower(model)


def restore_forward(model: nn.Module) -> None:
    """Undo `accept_images_alone` where no adapter of ours is left in the model."""
    if any(layer.adapter_settings for layer in adapter_layers(model)):
        return
    cls = type(model)
    if OWN not in cls.__dict__:  # or another subclass has been put on top of it
        return
    model.__class__ = getattr(cls, OWN)
    model.__dict__.pop(TOWER, None)
    if getattr(model.__dict__.get("forward"), "__func__", None) is cls.forward:
        del model.forward  # where accelerate has unwrapped the model
    if (before := model.__dict__.pop(BEFORE, None)) is not None:
        model.forward = before


@cache
def _taking_images(parent: Any) -> type[nn.Module]:
    """The subclass of a dual encoder's class whose forward takes images alone; one for each."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the image side alone where there is no text."""
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        text = given.get("input_ids") is not None or given.get("pixel_values") is None
        if text or not getattr(self, "peft_config", None):
            return _run_own(self, parent, args, kwargs)
        options = {
            name: value
            for name, value in given.items()
            if value is not None and name not in NOT_FOR_IMAGES
        }
        output = CLIPOutput(image_embeds=_embeds(self, options))
        return output.to_tuple() if given.get("return_dict") is False else output

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy as what `_empty` makes of the parent, which alone can be imported."""
        usual: tuple[Any, ...] = parent.__reduce_ex__(self, protocol)
        return (_empty, (parent,), *usual[2:]) if OWN in type(self).__dict__ else usual

    def delete_adapter(self: Any, *args: Any, **kwargs: Any) -> None:
        """Delete adapters as transformers does; with the last one the parent's forward is back."""
        parent.delete_adapter(self, *args, **kwargs)
        restore_forward(self)

    signature = inspect.signature(parent.forward)
    names = list(signature.parameters)[1:]
    forward.__signature__ = signature  # type: ignore[attr-defined]  # the Trainer picks columns by it
    body = {
        "__module__": parent.__module__,
        "__qualname__": parent.__qualname__,
        "__doc__": parent.__doc__,
        "__reduce_ex__": reduce,
        "forward": forward,
        OWN: parent,
    }
    if hasattr(parent, "delete_adapter"):
        body["delete_adapter"] = delete_adapter
    return type(parent)(parent.__name__, (parent,), body)


def _empty(parent: Any) -> nn.Module:
    """A model without attributes, which pickle and copy fill in."""
    cls = _taking_images(parent)
    return cls.__new__(cls)


def _run_own(model: Any, parent: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the forward that the model had before, on this very model: it may be a copy."""
    before = model.__dict__.get(BEFORE)
    if before is None:
        return parent.forward(model, *args, **kwargs)
    if isinstance(before, MethodType):  # bound to the model that it was set on
        return before.__func__(model, *args, **kwargs)
    return before(*args, **kwargs)


def _embeds(model: Any, options: dict[str, Any]) -> Any:
    """The readout of images, in a model that may be a copy of the one with the adapter."""
    found: tuple[TowerAnatomy, str] | None = model.__dict__[TOWER]
    if found is None:
        features: Any = model.get_image_features(**options)
        return getattr(features, "pooler_output", features)
    tower, path = found
    if tower.model is not model:
        tower = replace(tower, model=model, tower=model.get_submodule(path))
    options.pop("use_itm_head", None)  # for texts
    named = {name: options.pop(name) for name in tower.inputs if name in options}
    return run_tower(model, named, anatomy=tower, **options)


def _unusual_tower(model: nn.Module) -> tuple[TowerAnatomy, str] | None:
    """Find the image tower, and its path, where `get_image_features` does not give its readout.

    Not while the model runs: `torch.compile` would have to follow it.
    """
    try:
        anatomy = find_tower(model, "image")
    except ResiDualError:  # stream mode adapts what it does not know
        return None
    if hasattr(model, "get_image_features") and not anatomy.reads_tokens:
        return None
    return anatomy, next(p for p, module in model.named_modules() if module is anatomy.tower)
