"""What each column says for a class: the logit of a head is a sum, and its shares are exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import ResiDualError
from .head import ClassHead


def contributions(head: ClassHead, features: Tensor, class_index: int) -> Tensor:
    """What each column adds to a class's logit (M, K): `τ c̃_j V_jk`.

    With `constant` and the text's part `a z_k` they sum to the logit.

    Raises:
        ResiDualError: no such class, or features of another basis.
    """
    _check_class(head, class_index)
    head.scores(features[:0])  # says what is wrong with their width
    centred = (features.to(head.mean) - head.mean) / head.scale
    return head.temperature * centred * head.weights[:, class_index]


def constant(head: ClassHead, class_index: int) -> float:
    """What a class's logit has whatever the image: `τ m_k`."""
    _check_class(head, class_index)
    return head.temperature * float(head.offset[class_index])


def contrast(head: ClassHead, features: Tensor, this: int, other: int) -> Tensor:
    """What each column says for one class rather than another (M, K): the difference of both.

    It sums to the difference of the two logits, but for the constants' and the text's.
    """
    return contributions(head, features, this) - contributions(head, features, other)


def variance_shares(head: ClassHead, features: Tensor, class_index: int) -> Tensor:
    """Share of each column in how a class's score varies over images (K,); they sum to 1.

    cov(contribution, score) / var(score), over what the head itself says; negative where a column
    works against the rest. Zeros where the score does not vary.

    Raises:
        ResiDualError: as `contributions`; fewer than two images.
    """
    if len(features) < 2:
        raise ResiDualError(f"wanted at least two images to see a score vary, got {len(features)}.")
    parts = contributions(head, features.double(), class_index).double()
    parts = parts - parts.mean(0)
    score = parts.sum(1)
    total = score.square().sum()
    return parts.mT @ score / total if float(total) > 0 else torch.zeros_like(parts[0])


def class_portrait(head: ClassHead, class_means: Tensor) -> Tensor:
    """What each column says of class k where images of class k are, on average (K, C).

    Column k is `τ c̃_j V_jk` at the class's mean: as the logit is linear, the mean over its images.
    With the constant it sums to their mean score.

    Args:
        head: of C classes.
        class_means: mean features of each class's images (C, K).

    Raises:
        ResiDualError: means of another number of classes or columns.
    """
    if class_means.shape != head.weights.mT.shape:
        raise ResiDualError(
            f"wanted the mean features of each class {tuple(head.weights.mT.shape)}, got "
            f"{tuple(class_means.shape)}."
        )
    centred = (class_means.to(head.mean) - head.mean) / head.scale
    return head.temperature * centred.mT * head.weights


def by_unit(values: Tensor, slices: Sequence[slice]) -> Tensor:
    """Sum over the columns of each unit: (..., K) -> (..., U).

    Raises:
        ResiDualError: slices that do not part the columns among them.
    """
    edges = [(part.start or 0, part.stop, part.step) for part in slices]
    ends = [0, *(stop for _, stop, _ in edges)]
    fits = all(step in (None, 1) for *_, step in edges) and ends[-1] == values.shape[-1]
    if not fits or [start for start, *_ in edges] != ends[:-1]:
        raise ResiDualError(
            f"wanted one slice per unit that together are the {values.shape[-1]} columns, got "
            f"{', '.join(f'{start}:{stop}' for start, stop, _ in edges[:8]) or 'none'}."
        )
    sums = [values[..., part].sum(-1) for part in slices]
    return torch.stack(sums, -1)


def strongest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns that say most for (values above 0) and most against (below), strongest first.

    Args:
        values: of one image or class (K,).
        count: of each at most.
    """
    order = values.argsort(descending=True, stable=True)
    up = order[values[order] > 0][:count]
    order = order.flip(0)
    return up, order[values[order] < 0][:count]


def _check_class(head: ClassHead, class_index: int) -> None:
    if not 0 <= class_index < head.class_count:
        raise ResiDualError(
            f"wanted a class from 0 to {head.class_count - 1}, got {class_index}: this head knows "
            "no other."
        )
