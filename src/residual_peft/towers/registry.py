"""From a model to its tower: one function per architecture, registered under its class's name.

`families` holds those of transformers and open_clip.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from torch import nn

from ..errors import ResiDualError
from .anatomy import TowerAnatomy, checked, path_of, unwrapped
from .readouts import READOUTS, Mean

SIDES = ("image", "text")

UNKNOWN = "the architecture {name} is not known{side}; wanted one of {known}. To describe it:"
EXAMPLE = """    from residual_peft import TowerAnatomy, register_architecture
    @register_architecture("{name}")
    def describe(model): return TowerAnatomy("{name}", model, tower=model.tower, ...)
decompose(model, pixel_values) then checks that the units sum to the model's own readout."""

Describe = Callable[[nn.Module], TowerAnatomy]
ARCHITECTURES: dict[str, dict[str, Describe]] = {side: {} for side in SIDES}
UNSUITED: dict[str, dict[str, str]] = {side: {} for side in SIDES}
"""Side -> class -> why that tower of it cannot be decomposed."""


def register_architecture(*class_names: str, side: str = "image") -> Callable[[Describe], Describe]:
    """Register a function from a model to its anatomy under the names of the model's class."""

    def register(function: Describe) -> Describe:
        ARCHITECTURES[side].update(dict.fromkeys(class_names, function))
        return function

    return register


def base_model(model: nn.Module) -> nn.Module:
    """Take a `PeftModel` or a bare tuner off a model; any other model is returned as it is."""
    from peft import PeftModel  # not at the top: `registration`
    from peft.tuners.tuners_utils import BaseTuner

    while isinstance(model, PeftModel | BaseTuner):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.model
    return model


def find_tower(
    model: nn.Module, side: str | None = None, readout: str | None = None
) -> TowerAnatomy:
    """Find the parts of a model's tower, whether or not PEFT has wrapped some of them.

    Args:
        model: the model.
        side: "image" or "text"; None the image tower where there is one.
        readout: "own" the model's own, "mean" the mean of all tokens after the final norm,
            "patches" of those that stand for patches; None what an adapter of that tower adapts,
            else the model's own.

    Raises:
        ResiDualError: the architecture is not known, one of its parts is not as expected, or it has
            no such readout.
    """
    model = base_model(model)
    if side is not None and side not in SIDES:
        raise ResiDualError(f"wanted side 'image' or 'text', got {side!r}.")
    if readout is not None and readout not in READOUTS:
        raise ResiDualError(
            f"wanted readout 'own' (the model's), 'mean' or 'patches', got {readout!r}."
        )
    sides = SIDES if side is None else (side,)
    classes = [cls.__name__ for cls in type(model).__mro__]  # a subclass is read as its parent
    known = (ARCHITECTURES[one].get(name) for one in sides for name in classes)
    describe = next(filter(None, known), None)
    if describe is None:
        name, where = type(model).__name__, "" if side is None else f" for its {side} tower"
        if side is not None and (reason := UNSUITED[side].get(name)) is not None:
            raise ResiDualError(f"the {side} tower of {name} {reason}.")
        names = ", ".join(sorted(ARCHITECTURES[side or "image"]))
        raise ResiDualError(
            UNKNOWN.format(name=name, known=names, side=where), EXAMPLE.format(name=name)
        )
    anatomy = checked(_bare(describe(model)))
    if readout is None:
        found = (getattr(module, "anatomy", None) for module in model.modules())
        towers = (a for a in found if isinstance(a, TowerAnatomy) and a.side == anatomy.side)
        readout = next((adapted.readout.name for adapted in towers), None)
    own = (None, "own", anatomy.readout.name)
    return anatomy if readout in own else _mean_readout(anatomy, readout)


def _mean_readout(anatomy: TowerAnatomy, readout: str) -> TowerAnatomy:
    """Turn a tower into one whose readout is the mean of its tokens, each after the final norm."""
    if any(layer.attention is not None for layer in anatomy.layers):
        raise ResiDualError(
            f"readout={readout!r}: the fused attention of {anatomy.architecture} is read at one "
            "token. Leave readout out, or turn the model into one of transformers (of open_clip: "
            "open_clip_to_transformers(model))."
        )
    if anatomy.prefix_tokens is None:
        raise ResiDualError(
            f"readout={readout!r}: {anatomy.architecture} runs its final norm over the readout "
            "token alone, so that its tokens have no mean that belongs to the model. Leave readout "
            "out, or take a tower whose last_hidden_state is normed."
        )
    if readout == "patches" and anatomy.side == "text":
        raise ResiDualError("readout='patches' of a text tower: wanted 'mean', or the model's own.")
    end = anatomy.readout.end
    return replace(
        anatomy,
        projection=None,
        projection_path=path_of(anatomy.model, anatomy.final_norm),
        reads_tokens=True,
        outside=anatomy.outside if end is None else (*anatomy.outside, end),
        read=anatomy.read if anatomy.reads_tokens else None,
        readout=Mean(
            name=readout,
            first=anatomy.prefix_tokens if readout == "patches" else 0,
            mask=anatomy.mask,
        ),
    )


def _bare(anatomy: TowerAnatomy) -> TowerAnatomy:
    """Take PEFT's layers off all parts: who describes a tower need not think of them."""

    def bare(part: Any, *names: str, **others: Any) -> Any:
        return replace(part, **others, **{name: unwrapped(getattr(part, name)) for name in names})

    layers = [bare(a, "output_projection", "mlp", "mlp_projection") for a in anatomy.layers]
    found: TowerAnatomy = bare(
        anatomy, "embedding", "final_norm", "projection", layers=tuple(layers)
    )
    return found


# the families come with the registry, whichever module of the package is imported first; by name,
# as they stand below it
for _family in iter_modules([str(Path(__file__).parent / "families")]):
    importlib.import_module(f"{__package__}.families.{_family.name}")
