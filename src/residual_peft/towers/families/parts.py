"""What describing a family takes: parts looked for wherever a release of transformers had them.

A family is known by its classes, and its parts and sizes by its modules, never by a table of sizes.
"""

from typing import Any

from torch import nn

from ...errors import ResiDualError
from ..anatomy import LayerAnatomy, TowerAnatomy, path_of, unwrapped
from ..readouts import Readout

OUTPUT_PROJECTION = ("self_attn.out_proj", "self_attn.projection")
POST_NORM = (
    "is post-norm: a LayerNorm after each sum rescales all that was written before, so that "
    'what its heads write does not add up. Adapt the image side (side="image")'
)
"""Why a text tower is unsuited whose LayerNorms stand behind each sum: its stream is no sum."""


def part_at(module: nn.Module, path: str) -> Any:
    """Follow a path of attributes, taking PEFT's layers off on the way; None where it ends."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
        found = found if found is None else unwrapped(found)
    return found


def first_path(module: nn.Module, paths: tuple[str, ...]) -> str:
    """Return the first of the paths that leads to something."""
    for path in paths:
        if part_at(module, path) is not None:
            return path
    raise ResiDualError(
        f"{type(module).__name__} has none of {', '.join(paths)}, where transformers 5.6 and later "
        "keep that part; describe the model with TowerAnatomy and register_architecture."
    )


def nested(model: Any, name: str) -> Any:
    """A tower inside a model, or the model itself: up to transformers 5.3 or so one level down."""
    inside = getattr(model, name, None)
    return model if inside is None else getattr(inside, name, inside)


def encoder_tower(
    model: Any, tower: Any, norm: Any, projection: Any, readout: Readout, **options: Any
) -> TowerAnatomy:
    """A tower with CLIP's kind of encoder; `options` where it is not what most have."""
    return TowerAnatomy(
        architecture=type(model).__name__,
        model=model,
        tower=tower,
        layers=tuple(
            LayerAnatomy(
                module=layer,
                output_projection=part_at(layer, first_path(layer, OUTPUT_PROJECTION)),
                mlp=layer.mlp,
                mlp_projection=part_at(layer, "mlp.fc2"),
            )
            for layer in tower.encoder.layers
        ),
        final_norm=norm,
        projection=projection,
        projection_path=path_of(model, projection or readout.end or norm),
        num_heads=tower.encoder.layers[0].self_attn.num_heads,
        readout=readout,
        **{"embedding": getattr(tower, "embeddings", None), **options},
    )


def text_tower(model: Any, tower: Any, projection: Any, readout: Readout) -> TowerAnatomy:
    """A text tower with CLIP's kind of encoder: a token after the final norm, then a projection."""
    return encoder_tower(
        model,
        tower,
        tower.final_layer_norm,
        projection,
        readout,
        reads_tokens=projection is None,
        side="text",
        inputs=("input_ids", "attention_mask", "position_ids"),
        prefix_tokens=0,
        mask="attention_mask",
    )
