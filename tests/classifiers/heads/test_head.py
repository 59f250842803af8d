"""What a class head says, what it refuses, and what is saved of it."""

from collections.abc import Callable

import pytest
import torch

from residual_peft.classifiers.heads import ClassHead
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
