"""method.md, section 3, word for word: plain loops in float64 over what every unit contributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from residual_peft.towers.units import Unit
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.models import EVERY, Size, pixels
from tests.slow import slow_contributions

IMAGES = 60


@dataclass(frozen=True)
class SlowBasis:
    """Φ_u (k, d) and μ_u (d,) of one unit."""

    components: Tensor
    mean: Tensor


def slow_adapted(
    contributions: dict[Unit, Tensor],
    units: Sequence[Unit],
    bases: dict[Unit, SlowBasis],
    gains: dict[Unit, Tensor],
    *,
    keep: bool,
    restore_mean: bool,
) -> Tensor:
    """y' = Σ_{u adapted} T_u(x_u) + remainder, (B, d); a unit without a basis is scaled whole."""
    readout = contributions[Unit("output")]
    parts = {unit: x for unit, x in contributions.items() if unit.kind != "output"}
    bias = readout - sum(parts.values())
    result = torch.zeros_like(readout)
    for unit in units:
        x = contributions[unit]
        if unit not in bases:
            result = result + gains[unit] * x
            continue
        mean = bases[unit].mean
        if bases[unit].components is None:  # one gain on the centred whole
            result = result + gains[unit] * (x - mean)
        else:
            for row in range(len(x)):
                for direction, gain in zip(bases[unit].components, gains[unit], strict=True):
                    result[row] += gain * (direction @ (x[row] - mean)) * direction
            if keep:  # directions that were cut off
                phi = bases[unit].components
                result = result + (x - mean) - (x - mean) @ phi.T @ phi
        if restore_mean:
            result = result + mean
    if keep and Unit("output") not in units:
        result = result + bias
        for unit, x in parts.items():
            if unit not in units:
                result = result + x
    return result


def expected(
    base: nn.Module, model: PeftModel, pixel_values: Tensor, adapter_name: str = "default"
) -> Tensor:
    """y' of an adapter by the slow way; `base` is the same model without adapters."""
    layer = next(m for m in model.modules() if hasattr(m, "adapter_settings"))
    config = model.peft_config[adapter_name]
    units = layer.adapter_settings[adapter_name].units
    state, gains = layer.state(adapter_name), gains_of(model, adapter_name).detach().double()
    bases: dict[Unit, SlowBasis] = {}
    if config.granularity == "unit":
        split = dict(zip(units, gains, strict=True))
        if config.restore_mean:
            means = zip(units, state.means.double(), strict=True)
            bases = {unit: SlowBasis(None, mean) for unit, mean in means}
    else:
        counts = config.component_counts
        split = dict(zip(units, gains.split(counts), strict=True))
        components = state.directions.double().split(counts)
        bases = {
            unit: SlowBasis(phi, mean)
            for unit, phi, mean in zip(units, components, state.means.double(), strict=True)
        }
    return slow_adapted(
        slow_contributions(base, pixel_values),
        units,
        bases,
        split,
        keep=config.remainder == "keep",
        restore_mean=config.restore_mean,
    )


def randomize_gains(model: nn.Module, adapter_name: str = "default", seed: int = 7) -> None:
    gains = gains_of(model, adapter_name)
    generator = torch.Generator().manual_seed(seed)
    gains.data = 1 + torch.randn(gains.shape, generator=generator)


def adapted(
    config: ResiDualConfig | None = None,
    *,
    builder: str = "CLIPModel",
    size: Size | None = None,
    dtype: torch.dtype = torch.float32,
    fit: bool = True,
    gains: bool = True,
) -> PeftModel:
    """A tiny model with one adapter, its basis fitted, its gains random."""
    base = EVERY[builder](size).to(dtype)
    model = get_peft_model(base, config or ResiDualConfig())
    if fit:
        fit_bases(model, [pixels(IMAGES, size, seed=5).to(dtype)])
    if gains:
        randomize_gains(model)
    return model.eval()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
