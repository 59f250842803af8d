"""Shares of a class's logit by column and by unit: sums that are exact."""

from typing import Any

import pytest
import torch

from residual_peft.classifiers.heads import ClassHead, fit_ridge
from residual_peft.classifiers.heads.explain import (
    by_unit,
    class_portrait,
    contrast,
    contributions,
    strongest,
)
from residual_peft.errors import ResiDualError
from tests.pairs import table

UNITS = (3, 1, 5)


@pytest.fixture
def fitted(drawn: Any) -> tuple[Any, ClassHead]:
    data = drawn((8, 12, 10), 9)
    return data, fit_ridge(data.features, data.labels, 3, zero_shot=data.zero_shot).head


def test_contributions_constant_and_text_are_the_logit(fitted: tuple[Any, ClassHead]) -> None:
    data, head = fitted
    logits = head.logits(data.features, data.zero_shot)
    for c in range(3):
        parts = contributions(head, data.features, c)
        total = (
            parts.sum(1)
            + head.temperature * head.offset[c]
            + head.text_weight * data.zero_shot[:, c]
        )
        torch.testing.assert_close(total, logits[:, c])
        torch.testing.assert_close(by_unit(parts, UNITS).sum(1), parts.sum(1))
    one = by_unit(contributions(head, data.features[4:5], 1), UNITS)[0]
    expected = 0.0
    for j in (4, 5, 6, 7, 8):
        centred = float((data.features[4, j] - head.mean[j]) / head.scale[j])
        expected += head.temperature * centred * float(head.weights[j, 1])
    assert float(one[2]) == pytest.approx(expected)


def test_what_made_it_this_class_rather_than_the_next(fitted: tuple[Any, ClassHead]) -> None:
    data, head = fitted
    logits = head.logits(data.features, torch.zeros(30, 3))
    difference = logits[:, 2] - logits[:, 0] - head.temperature * (head.offset[2] - head.offset[0])
    torch.testing.assert_close(contrast(head, data.features, 2, 0).sum(1), difference)


def test_a_portrait_is_the_mean_over_the_images_of_a_class(fitted: tuple[Any, ClassHead]) -> None:
    data, head = fitted
    means = torch.stack([data.features[data.labels == c].mean(0) for c in range(3)])
    portrait = class_portrait(head, means)
    for c in range(3):
        own = contributions(head, data.features[data.labels == c], c).mean(0)
        torch.testing.assert_close(portrait[:, c], own)


def test_strongest_for_and_against() -> None:
    up, down = strongest(torch.tensor([0.1, -3.0, 2.0, 0.0, -0.5]), 4)
    assert (up.tolist(), down.tolist()) == ([2, 0], [1, 4])
    assert [t.tolist() for t in strongest(torch.tensor([1.0, -1.0, 2.0]), 1)] == [[2], [1]]


@table(
    ("call", "message"),
    [
        (lambda h: contributions(h, torch.ones(2, 9), 3), "a class from 0 to 2, got 3"),
        (lambda h: contributions(h, torch.ones(2, 8), 0), r"the 9 features .*got \(0, 8\)"),
        (lambda h: class_portrait(h, torch.ones(9, 3)), r"of each class \(3, 9\), got \(9, 3\)"),
        (lambda h: by_unit(h.mean, [4, 4]), "a count of columns .* the 9, got 8"),
    ],
)
def test_what_cannot_be_explained(fitted: tuple[Any, ClassHead], call: Any, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        call(fitted[1])
