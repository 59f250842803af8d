"""The methods that a comparison knows, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from ..solvers.training import LEARNING_RATE
from ..tuner import ResiDualConfig

# The best on the demo's validation images (benchmarks/rates.json). The paper takes 1e-3 for the
# linear map and RD^y, on far larger data; over heads and MLPs its own rate is the best here too.
LINEAR_LEARNING_RATE = 1e-2
RD_Y_LEARNING_RATE = 0.8
LORA_LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Method:
    """One way to adapt a model."""

    name: str  # as in `results.json`
    label: str  # for people
    kind: str  # "none", "gains", "linear" or "lora"
    config: Callable[[int], ResiDualConfig] | None = None  # seed -> the adapter's config, for gains
    learning_rate: float = LEARNING_RATE  # of the optimizer


def _paper(name: str) -> Callable[[int], ResiDualConfig]:
    return lambda seed: ResiDualConfig.paper(name, seed=seed)


METHODS = {
    method.name: method
    for method in (
        Method("zero_shot", "zero-shot", "none"),
        Method("coarse", "coarse (paper)", "gains", _paper("coarse")),
        Method("residual_star", "ResiDual* (paper)", "gains", _paper("residual_star")),
        Method("residual", "ResiDual (paper)", "gains", _paper("residual")),
        Method("default", "ResiDual, our default", "gains", lambda seed: ResiDualConfig(seed=seed)),
        Method("rd_y", "RD^y (paper)", "gains", _paper("rd_y"), RD_Y_LEARNING_RATE),
        Method("linear", "linear map", "linear", learning_rate=LINEAR_LEARNING_RATE),
        Method("lora", "LoRA r=8 on q, v", "lora", learning_rate=LORA_LEARNING_RATE),
    )
}
"""name -> method, in the order of a table."""
