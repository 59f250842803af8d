"""What a class head says, what it refuses, what is saved of it, and the shares of its logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from residual_peft.classifiers.heads import ClassHead, fit_ridge
from residual_peft.classifiers.heads.head import by_unit, contrast, strongest
from residual_peft.errors import ResiDualError
from tests.pairs import table


def a_head(text_weight: float = 0.3) -> ClassHead:
    generator = torch.Generator().manual_seed(3)
    mean, scale = torch.randn(7, generator=generator), torch.rand(7, generator=generator) + 0.1
    weights = torch.randn(7, 4, generator=generator)
    return ClassHead(
        mean, scale, weights, torch.randn(4, generator=generator), text_weight, temperature=2.5
    )


def test_logits_are_the_formula() -> None:
    head, features, text = a_head(), torch.randn(5, 7), torch.randn(5, 4)
    for row, own, said in zip(features, head.logits(features, text), text, strict=True):
        for k in range(4):
            total = float(head.offset[k])
            for j in range(7):
                total += float((row[j] - head.mean[j]) / head.scale[j] * head.weights[j, k])
            assert float(own[k]) == pytest.approx(0.3 * float(said[k]) + 2.5 * total, abs=1e-5)


def test_a_head_that_does_not_weigh_the_text_needs_none() -> None:
    head, features = a_head(0.0), torch.randn(5, 7)
    assert torch.equal(head.logits(features), head.logits(features, torch.randn(5, 4)))


def test_it_takes_the_dtype_of_the_head() -> None:
    features, text = torch.randn(5, 7).half(), torch.randn(5, 4).half()
    assert a_head().logits(features, text).dtype == torch.float32
    assert a_head().to(torch.float64).logits(features, text).dtype == torch.float64


def test_trained_numbers() -> None:
    assert a_head().parameter_count == 7 * 4 + 4 + 2


def test_what_is_saved_comes_back() -> None:
    head = a_head().to(torch.float64)
    state = head.state()
    assert {t.dtype for t in state.values()} == {torch.float32}
    again = ClassHead.from_state(state)
    features, text = torch.randn(5, 7), torch.randn(5, 4)
    torch.testing.assert_close(
        again.logits(features, text).double(), head.logits(features, text), rtol=1e-5, atol=1e-5
    )


@table(
    ("change", "message"),
    [
        ({"weights": None}, "wanted a class head's tensors .*, got mean, offset, scale"),
        ({"more": torch.ones(1)}, "wanted a class head's tensors .*, got mean, more, offset"),
        ({"mean": torch.full((7,), torch.nan)}, "wanted finite numbers .* others in mean"),
        (
            {"temperature": torch.ones(2)},
            r"wanted one number as a class head's temperature.*\(2,\)",
        ),
        ({"scale": torch.zeros(7)}, "wanted a class head's scales above 0"),
        ({"offset": torch.zeros(5)}, r"\(7, 4\), \(5,\): its parts are of different heads"),
    ],
)
def test_what_is_no_head_is_refused(change: dict[str, torch.Tensor | None], message: str) -> None:
    state = {k: v for k, v in (a_head().state() | change).items() if v is not None}
    with pytest.raises(ResiDualError, match=message):
        ClassHead.from_state(state)


@table(
    ("call", "message"),
    [
        (
            lambda h: h.logits(torch.zeros(2, 9)),
            r"wanted the 7 features .*got \(2, 9\).*of another",
        ),
        (lambda h: h.logits(torch.zeros(7)), r"wanted the 7 features"),
        (lambda h: h.logits(torch.zeros(2, 7)), r"wanted zero-shot logits \(2, 4\), .* got none"),
        (
            lambda h: h.logits(torch.zeros(2, 7), torch.zeros(2, 5)),
            r"wanted zero-shot logits \(2, 4\), .* 0.3, got \(2, 5\)",
        ),
    ],
)
def test_features_of_another_basis(call: Callable[[ClassHead], object], message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        call(a_head())


UNITS = (3, 1, 5)


@pytest.fixture
def fitted(drawn: Any) -> tuple[Any, ClassHead]:
    data = drawn((8, 12, 10), 9)
    return data, fit_ridge(data.features, data.labels, 3, zero_shot=data.zero_shot).head


def test_what_made_it_this_class_rather_than_the_next(fitted: tuple[Any, ClassHead]) -> None:
    data, head = fitted
    parts = contrast(head, data.features, 2, 0)
    logits = head.logits(data.features, torch.zeros(30, 3))
    difference = logits[:, 2] - logits[:, 0] - head.temperature * (head.offset[2] - head.offset[0])
    torch.testing.assert_close(parts.sum(1), difference)
    torch.testing.assert_close(by_unit(parts, UNITS).sum(1), difference)
    expected = 0.0
    for j in (4, 5, 6, 7, 8):
        centred = float((data.features[4, j] - head.mean[j]) / head.scale[j])
        expected += head.temperature * centred * float(head.weights[j, 2] - head.weights[j, 0])
    assert float(by_unit(parts, UNITS)[4, 2]) == pytest.approx(expected)


def test_strongest_for_and_against() -> None:
    up, down = strongest(torch.tensor([0.1, -3.0, 2.0, 0.0, -0.5]), 4)
    assert (up.tolist(), down.tolist()) == ([2, 0], [1, 4])
    assert [t.tolist() for t in strongest(torch.tensor([1.0, -1.0, 2.0]), 1)] == [[2], [1]]


def test_counts_of_other_columns_are_refused() -> None:
    with pytest.raises(ResiDualError, match=r"a count of columns .* the 9, got 8"):
        by_unit(torch.zeros(9), [4, 4])
