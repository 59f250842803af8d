"""Statistics as they are saved: one half of each symmetric matrix, and every field checked."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ResiDualError

_NAMES = ("totals", "origin", "sums", "counts", "class_sums", "squares")


def half(square: Tensor) -> Tensor:
    """The lower triangle (..., K (K + 1) / 2) of symmetric matrices (..., K, K)."""
    rows, columns = torch.tril_indices(square.shape[-1], square.shape[-1])
    return square[..., rows, columns].contiguous()


def whole(triangle: Tensor, columns: int) -> Tensor:
    """The symmetric matrices that `half` was taken of."""
    rows, places = torch.tril_indices(columns, columns)
    square = torch.zeros(*triangle.shape[:-1], columns, columns, dtype=triangle.dtype)
    square[..., rows, places] = triangle
    square[..., places, rows] = triangle
    return square


def checked_sums(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved statistics in float64, refused where one is missing, of a wrong shape or not finite."""
    missing = set(_NAMES) - set(state)
    if missing:
        raise ResiDualError(
            f"wanted a class head's statistics, got none of {', '.join(sorted(missing))}."
        )
    k, c = state["origin"].numel(), state["counts"].numel()
    triangle = k * (k + 1) // 2
    shapes = {"totals": (2,), "origin": (k,), "sums": (k,), "counts": (c,), "class_sums": (c, k)}
    shapes |= {"squares": (triangle,), "class_squares": (c, triangle)}
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes.get(name) or not torch.isfinite(tensor).all():
            raise ResiDualError(
                f"wanted finite {name} {shapes.get(name, '(none)')} in statistics of {k} features "
                f"and {c} classes, got {tuple(tensor.shape)}: they are damaged, or no statistics."
            )
    return {name: tensor.double() for name, tensor in state.items()}
