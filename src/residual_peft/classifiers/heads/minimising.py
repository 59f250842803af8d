"""L-BFGS over tensors: what the methods without a closed form are fitted by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_HISTORY = 20


def minimise(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    tolerance: float = 1e-7,
    change: float = 1e-14,
    max_iterations: int = 500,
) -> Tensor:
    """Where L-BFGS (scipy's) ends, from a function that gives its value and its gradient.

    It begins at `start`, float64 of any shape, and stops once no entry of the gradient is larger
    than `tolerance`, or a step lowers the value by less than `change`, relative to it above 1.
    """
    # imported here: a head that is loaded needs no optimiser
    from scipy.optimize import minimize

    from ...bases.blas import one_thread_in_scipy

    def flat(values: Any) -> tuple[float, Any]:
        value, gradient = function(torch.from_numpy(values).view(shape))
        return float(value), gradient.reshape(-1).numpy()

    shape = start.shape
    options = {
        "maxcor": _HISTORY,
        "gtol": tolerance,
        "ftol": change,
        "maxiter": max_iterations,
        "maxfun": 4 * max_iterations,
    }
    first = start.detach().double().reshape(-1).numpy()
    with one_thread_in_scipy():
        found = minimize(flat, first, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view(shape)


def scaled_minimum(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    root: Tensor,
    tolerance: float,
    **options: Any,
) -> tuple[Tensor, float]:
    """The same over A √h, with √h `root`; A, and the largest entry of its gradient, in size.

    `tolerance` is that of the gradient by A; `options` are those of `minimise`.
    """

    def scaled(values: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = function(values / root)
        return value, gradient / root

    # the scaled variables' gradient is A's over √h
    limit = tolerance / float(root.max())
    found = minimise(scaled, start * root, tolerance=limit, **options) / root
    return found, float(function(found)[1].abs().max())
