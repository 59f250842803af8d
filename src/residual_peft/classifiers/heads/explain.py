"""What each column says for a class: the logit of a head is a sum, and its shares are exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ResiDualError
from .head import ClassHead


def contributions(head: ClassHead, features: Tensor, class_index: int) -> Tensor:
    """What each column adds to a class's logit (M, K): `τ c̃_j V_jk`.

    With the constant `τ m_k` and the text's part `a z_k` they sum to the logit.
    """
    if not 0 <= class_index < head.class_count:
        raise ResiDualError(
            f"wanted a class from 0 to {head.class_count - 1}, got {class_index}: this head knows "
            "no other."
        )
    head.scores(features[:0])  # says what is wrong with their width
    centred = (features.to(head.mean) - head.mean) / head.scale
    return head.temperature * centred * head.weights[:, class_index]


def contrast(head: ClassHead, features: Tensor, this: int, other: int) -> Tensor:
    """What each column says for one class rather than another (M, K): the difference of both."""
    return contributions(head, features, this) - contributions(head, features, other)


def class_portrait(head: ClassHead, class_means: Tensor) -> Tensor:
    """What each column says of class k where images of class k are, on average (K, C).

    Column k is `τ c̃_j V_jk` at the class's mean features (C, K): as the logit is linear, the mean
    over its images. With the constant it sums to their mean score.
    """
    if class_means.shape != head.weights.mT.shape:
        raise ResiDualError(
            f"wanted the mean features of each class {tuple(head.weights.mT.shape)}, got "
            f"{tuple(class_means.shape)}."
        )
    centred = (class_means.to(head.mean) - head.mean) / head.scale
    return head.temperature * centred.mT * head.weights


def by_unit(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum over the columns of each unit: (..., K) -> (..., U)."""
    if sum(counts) != values.shape[-1]:
        raise ResiDualError(
            f"wanted a count of columns for each unit that together are the {values.shape[-1]}, "
            f"got {sum(counts)}."
        )
    return torch.stack([part.sum(-1) for part in values.split(list(counts), -1)], -1)


def strongest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns that say most for (values (K,) above 0) and most against, `count` of each at most."""
    order = values.argsort(descending=True, stable=True)
    up = order[values[order] > 0][:count]
    order = order.flip(0)
    return up, order[values[order] < 0][:count]
