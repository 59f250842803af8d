"""Random images of a few classes, and ridge as anyone would write it: the twins of this folder."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Features that say something of their labels, in float64."""

    features: Tensor
    labels: Tensor
    zero_shot: Tensor
    class_count: int


def draw(
    sizes: tuple[int, ...], columns: int, *, seed: int = 0, apart: float = 1.0, text: float = 1.0
) -> Draw:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = apart * random(len(sizes), columns)
    # deviations from .03 to 30: p matters
    deviations = 10 ** (1.5 * (2 * torch.rand(columns, generator=generator).double() - 1))
    features = (centres[labels] + random(len(labels), columns)) * deviations + 5 * random(columns)
    one_hot = torch.eye(len(sizes), dtype=torch.float64)[labels]
    zero_shot = text * one_hot + random(len(labels), len(sizes))
    return Draw(features, labels, zero_shot, len(sizes))


@pytest.fixture
def drawn() -> Callable[..., Draw]:
    return draw


def plain_ridge(
    features: Tensor,
    targets: Tensor,
    weights: Tensor,
    mean: Tensor,
    scale: Tensor,
    alpha: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Weighted ridge with a free intercept by its normal equations, for given scales."""
    x = torch.cat([(features - mean) / scale, torch.ones(len(features), 1).double()], 1)
    left = x.mT @ (weights.unsqueeze(1) * x)
    right = x.mT @ (weights.unsqueeze(1) * targets)
    columns = []
    for c, strength in enumerate(alpha.tolist()):
        penalty = torch.full((x.shape[1],), strength, dtype=torch.float64)
        penalty[-1] = 0
        columns.append(torch.linalg.solve(left + penalty.diag(), right[:, c]))
    solution = torch.stack(columns, 1)

    def scores(new: Tensor) -> Tensor:
        return (new - mean) / scale @ solution[:-1] + solution[-1]

    return scores


@pytest.fixture
def ridge_twin() -> Callable[..., Callable[[Tensor], Tensor]]:
    return plain_ridge


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits as they are: 1,797 images of 64 pixels."""
    found = load_digits()
    return torch.from_numpy(found.data), torch.from_numpy(found.target).long()


@pytest.fixture
def task() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Classes by turns, in columns of about equal size, with zero-shot logits that help."""

    def draw_task(
        count: int = 40,
        columns: int = 10,
        classes: int = 4,
        *,
        seed: int = 0,
        spread: float = 1.0,
        text: float = 2.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        labels = torch.arange(count) % classes
        scales = torch.rand(columns, generator=generator, dtype=torch.float64) * 2 + 0.2
        features = (spread * normal(classes, columns)[labels] + normal(count, columns)) * scales
        zero_shot = normal(count, classes)
        zero_shot[torch.arange(count), labels] += text
        return features + 0.5, labels, zero_shot

    return draw_task
