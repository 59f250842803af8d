"""L-BFGS over tensors: what the methods without a closed form are fitted by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HISTORY = 20


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: of the shape it started with.
        value: of the function there.
        gradient_norm: the largest entry of the gradient there, in size; what certifies it.
        evaluations: how often the function was asked.
    """

    point: Tensor
    value: float
    gradient_norm: float
    evaluations: int


def minimise(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    tolerance: float = 1e-7,
    change: float = 1e-14,
    max_iterations: int = 500,
) -> Minimum:
    """L-BFGS with a strong-Wolfe line search (torch's), from a function that has its gradient.

    Args:
        function: a point -> its value and its gradient there.
        start: where it begins, float64 of any shape; unchanged.
        tolerance: it stops once no entry of the gradient is larger.
        change: or once the value, or every entry of the point, moves by less.
        max_iterations: at most.
    """
    point = start.detach().clone()
    asked = 0

    def closure() -> Tensor:
        nonlocal asked
        asked += 1
        value, point.grad = function(point.detach())
        return value

    optimizer = torch.optim.LBFGS(
        [point.requires_grad_(True)],
        max_iter=max_iterations,
        max_eval=4 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=change,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    found = point.detach()
    value, gradient = function(found)
    return Minimum(found, float(value), float(gradient.abs().max()), asked)
