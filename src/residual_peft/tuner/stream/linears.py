"""Which Linears stream mode adapts, and into how many heads their input falls."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import ResiDualError
from ...towers.anatomy import TowerAnatomy, unwrapped
from ...towers.registry import SIDES, find_tower
from ...towers.units import Unit
from ..choice import chosen_units
from ..config import ResiDualConfig
from ..patterns import fullmatch

OUTPUT_PROJECTIONS = (
    "out_proj",
    "o_proj",
    "c_proj",
    "dense",
    "out_lin",
    "proj",
    "to_out",
    "wo",
    "o",
)
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


def tower_targets(config: ResiDualConfig, model: nn.Module) -> list[str]:
    """Paths of the attention output projections and last MLP Linears that a config asks for."""
    try:
        anatomy = find_tower(model, config.side)
    except ResiDualError as error:
        raise ResiDualError(
            f"mode='stream' without target_modules adapts a tower's own projections, and "
            f"they were not found: {error} Or name the Linears to adapt with target_modules=."
        ) from None
    units = [unit for unit in chosen_units(config, anatomy) if unit.layer is not None]
    chosen = {id(anatomy.writers(unit)[-1]) for unit in units}
    named = [path for path, module in model.named_modules() if id(module) in chosen]
    return [path.replace(".base_layer", "") for path in named]  # where PEFT has wrapped some


def unit_names(model: nn.Module, path: str, heads: int, side: str | None = None) -> list[str]:
    """Name the heads that write through a Linear: as units in the tower, else by its path."""
    tower, module = tower_or_none(model, side), unwrapped(model.get_submodule(path))
    for index, layer in enumerate(tower.layers if tower is not None else ()):
        if module is layer.output_projection:
            return [str(Unit("head", index, head)) for head in range(heads)]
        if module is layer.mlp_projection:
            return [str(Unit("mlp", index))]
    return [path] if heads == 1 else [f"{path}.head{head}" for head in range(heads)]


def in_chosen_layers(config: ResiDualConfig, path: str) -> bool:
    """Whether `layers_to_transform` has a module: PEFT looks only where targets are names."""
    layers, patterns = config.layers, config.layers_pattern
    if layers is None:
        return True
    if patterns is not None and not isinstance(patterns, str):
        patterns = "|".join(patterns)
    parts = path.split(".")
    for start in range(len(parts)):
        for place in range(start + 1, len(parts) - 1):
            owner = ".".join(parts[start:place])
            numbered = parts[place].isdecimal()
            if numbered and (fullmatch(patterns, owner) if patterns else place == start + 1):
                return int(parts[place]) in layers
    return False


def check_linear(module: nn.Module, path: str, model: nn.Module) -> None:
    """Refuse what would be adapted without effect, or whose weight is not at hand."""
    owner = ""
    for name in ["", *path.split(".")[:-1]]:
        owner = ".".join(filter(None, [owner, name]))
        outer = model.get_submodule(owner)
        if isinstance(outer, nn.MultiheadAttention):
            raise ResiDualError(
                f"{path} is inside the nn.MultiheadAttention {owner!r}, which computes with its "
                "weights and never calls it: an adapter there would do nothing. Leave it out with "
                "exclude_modules, or load a model with plain attention (transformers has them)."
            )
    kind = f"{type(module).__module__}.{type(module).__name__}"
    # exactly these: subclasses pack their weight (quantised) or compute something else
    if type(module) not in (nn.Linear, Conv1D):
        raise ResiDualError(
            f"target module {path} is a {kind} and is not supported: stream mode adapts plain "
            "torch.nn.Linear and transformers' Conv1D, neither fused nor quantised. Name other "
            "target_modules, or load the model unquantised."
        )
    weight: Any = module.weight
    if type(weight.data) is not Tensor or not weight.is_floating_point() or weight.ndim != 2:
        raise ResiDualError(
            f"target module {path} keeps a {type(weight.data).__name__} of {weight.dtype}, shape "
            f"{tuple(weight.shape)}; wanted a floating point matrix: load the model unquantised."
        )


def linear_weight(module: nn.Module) -> Tensor:
    """Give the weight as (out_features, in_features): Conv1D keeps its transpose."""
    weight: Any = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def heads_of(model: nn.Module, path: str) -> int:
    """Count the heads that write through a Linear: 1 where it is no attention output projection.

    Asked in this order: the towers; where its name is that of an output projection, its
    parent; where it is also in an attention block, the parent's or model's config. A count is
    believed only when the heads fill the module's input exactly.
    """
    module = unwrapped(model.get_submodule(path))
    for tower in filter(None, (tower_or_none(model, side) for side in SIDES)):
        if any(module is layer.output_projection for layer in tower.layers):
            return tower.num_heads
    *owners, name = path.split(".")
    if name.isdigit() and owners:  # diffusers: to_out.0
        *owners, name = owners
    if name not in OUTPUT_PROJECTIONS:
        return 1
    parent = model.get_submodule(".".join(owners))
    sources: list[Any] = [parent]
    near = [*owners[-2:], type(parent).__name__]
    if any("attn" in word.lower() or "attention" in word.lower() for word in near):
        sources += [getattr(parent, "config", None), getattr(model, "config", None)]
    width = linear_weight(module).shape[1]
    for source in sources:
        heads = next((n for key in HEAD_COUNTS if (n := getattr(source, key, None))), None)
        if isinstance(heads, int) and width % heads == 0:
            head_dim = getattr(source, "head_dim", None)
            if not isinstance(head_dim, int) or head_dim * heads == width:
                return heads
    return 1


def tower_or_none(model: nn.Module, side: str | None = None) -> TowerAnatomy | None:
    """Find a model's tower (None: the image tower where there is one), if it is known."""
    try:
        return find_tower(model, side)
    except ResiDualError:
        return None
