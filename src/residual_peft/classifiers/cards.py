"""The model card of a classifier, and the picture of its gains beside it."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..hub.cards import MARK, adapter_card
from ..hub.directories import CARD
from ..hub.facts import Facts
from ..tuner import ResiDualConfig, adapter_basis, gains_by_unit
from .adapters import Adapters, configs_of
from .backbones import origin_of
from .figures import gains_figure
from .files import FIGURE
from .trained_head import TrainedHead

_WRITERS = {
    "embed": "the patch embedding",
    "head": "one attention head",
    "mlp": "one MLP",
    "pooler": "the MLP after the attention pooling",
}


def is_ours(card: Path) -> bool:
    """Whether a card may be written again: it bears this package's mark, or nobody filled it in.

    PEFT's own `save_pretrained` leaves a form behind, which names the base model by its directory.
    """
    text = card.read_text(encoding="utf-8", errors="replace")
    if MARK in text:
        return True
    try:
        filled, form = ModelCard(text).text, ModelCard.from_template(ModelCardData()).text
    except (ValueError, TypeError):
        return False
    # of the blank form, with PEFT's version at its end
    added = ("### Framework versions", "- PEFT ")
    left = [line for line in filled.splitlines() if line and not line.startswith(added)]
    return left == [line for line in form.splitlines() if line]


def write_card(model: nn.Module, folder: Path, facts: Facts) -> None:
    """Write README.md and, for gains that lie in layers, the picture of them beside it."""
    name, config = _main_adapter(model)
    ours = config if isinstance(config, ResiDualConfig) else None
    placed = ours is not None and ours.mode == "readout" and {"head", "mlp"} & set(ours.units)
    if ours is not None and placed and importlib.util.find_spec("matplotlib") is not None:
        values = {unit: part.tolist() for unit, part in gains_by_unit(model, name).items()}
        if any(gain != 1 for part in values.values() for gain in part):  # a head leaves them alone
            variance = None
            if ours.granularity != "unit":
                basis = adapter_basis(model, name)
                pairs = zip(basis.units, basis.eigenvalues, strict=True)
                variance = {unit: part.tolist() for unit, part in pairs}
            gains_figure(values, folder / FIGURE, variance=variance)
            facts = replace(facts, figure=FIGURE)
    (folder / CARD).write_text(adapter_card(facts), encoding="utf-8")


def adapter_facts(
    model: nn.Module, described: Any, head: TrainedHead | None, facts: Facts, location: str
) -> Facts:
    """Facts, and beside them what the adapter and its classes know, `described` by their record.

    The `head` is the one that is saved.
    """
    (name, kind), (own, config) = origin_of(model), _main_adapter(model)
    adapter: dict[str, Any] = {}
    read = None if head is None else "the image embedding as it comes"
    if head is not None and head.features != "embedding" and isinstance(config, ResiDualConfig):
        along = _effect_of(config, "component")
        read = f"{len(head.head.mean):,} coordinates, each along {along},"
    if config is not None:
        adapter = {"peft_type": getattr(config.peft_type, "value", config.peft_type)}
    if isinstance(config, ResiDualConfig):
        adapter |= _described(model, own, config)
        adapter["trained"] = adapter["gains"] if facts.trained is None else facts.trained
    return replace(
        facts,
        adapter=location,
        base_model=Path(name).name if name and Path(name).is_dir() else name,
        base_class=kind,
        class_names=described.class_names,
        templates=described.templates,
        multi_label=described.multi_label,
        logit_bias=described.logit_bias,
        own_thresholds=head is not None and head.thresholds is not None,
        head=read,
        **adapter,
    )


def _main_adapter(model: nn.Module) -> tuple[str, Any]:
    """Name and config of the adapter in the directory itself; no config where there is none."""
    adapters = Adapters.of(model)
    return (adapters.main, configs_of(model)[adapters.main]) if adapters.folders else ("", None)


def _described(model: nn.Module, name: str, config: ResiDualConfig) -> dict[str, Any]:
    """What an adapter of ours adapts, for people."""
    suffix = f"residual_peft_gains.{name}"
    gains = [part for path, part in model.named_parameters() if path.endswith(suffix)]
    return {
        "gains": sum(part.numel() for part in gains),
        "moved": any(bool((part != 1).any()) for part in gains),
        "effect": _effect_of(config),
        "basis": config.fitted.described,
        "settings": {
            "mode": config.mode,
            "units": ", ".join(config.units),
            "components": _kept(config),
            "gains": f"one per {config.granularity}",
            "remainder": config.remainder,
            "means": "restored" if config.restore_mean else "dropped",
        },
    }


def _kept(config: ResiDualConfig) -> str:
    """Which components there are a gain for, in words."""

    def in_words(kept: float | None) -> str:
        if isinstance(kept, float):
            return f"the fewest with {100 * kept:.6g}% of the variance"
        return "all" if kept is None else f"the first {kept}"

    own = [f"{in_words(kept)} of {unit}" for unit, kept in (config.component_pattern or {}).items()]
    return "; ".join([*own, in_words(config.components) + (" of the others" if own else "")])


def _effect_of(config: ResiDualConfig, granularity: str | None = None) -> str:
    each = (granularity or config.granularity) == "component"
    part = "one principal component of " if each else ""
    side = config.side or "image"
    if config.mode == "stream":
        return f"{part}what one head of an adapted Linear writes to the residual stream"
    if "output" in config.units:
        return f"{part}the {side} embedding"
    writers = " or ".join(_WRITERS[kind] for kind in config.units)
    writers = writers.replace("patch", "patch" if side == "image" else "token")
    return f"{part}what {writers} writes to the {side} embedding"
