"""Heads in fewer bytes: the best of their rank, and what is saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.heads import ClassHead, RidgeFit, fit_ridge, head_from_state
from residual_peft.classifiers.heads.compress import (
    LowRankHead,
    bytes_of,
    eight_bits,
    evened,
    low_rank,
    within,
)
from residual_peft.errors import ResiDualError


@pytest.fixture
def fitted(drawn: Any) -> tuple[Any, RidgeFit]:
    data = drawn((9,) * 8, 40)
    return data, fit_ridge(data.features, data.labels, 8, zero_shot=data.zero_shot)


def test_no_head_of_its_rank_comes_nearer(fitted: tuple[Any, RidgeFit]) -> None:
    data, fit = fitted
    scores = fit.head.scores(data.features)
    errors = []
    for rank in range(1, 8):
        small = low_rank(fit.head, data.features, rank).expanded()
        assert int(torch.linalg.matrix_rank(small.weights)) == rank
        errors.append(float((small.scores(data.features) - scores).square().sum()))
    # Eckart and Young: what is left are the squares of the other singular values
    values = torch.linalg.svdvals(scores - scores.mean(0)).square()
    assert errors == pytest.approx([float(values[rank:].sum()) for rank in range(1, 8)], abs=1e-9)


def test_its_logits_are_those_of_the_expanded_head(fitted: tuple[Any, RidgeFit]) -> None:
    data, fit = fitted
    small = low_rank(fit.head, data.features, 3)
    torch.testing.assert_close(
        small.logits(data.features, data.zero_shot),
        small.expanded().logits(data.features, data.zero_shot),
    )
    assert small.parameter_count == (40 + 8) * 3 + 8 + 2
    whole = low_rank(fit.head, data.features, 99)
    torch.testing.assert_close(
        whole.logits(data.features, data.zero_shot),
        fit.head.logits(data.features, data.zero_shot),
    )


def test_rows_evened_are_the_same_head(fitted: tuple[Any, RidgeFit]) -> None:
    data, fit = fitted
    weights = fit.head.weights * 10 ** torch.linspace(-9, 3, 40).double().unsqueeze(1)
    weights[5] = 0
    head = ClassHead(fit.head.mean, fit.head.scale, weights, fit.head.offset)
    even = evened(head)
    torch.testing.assert_close(even.scores(data.features), head.scores(data.features))
    assert set(even.weights.abs().amax(1).tolist()) == {0.0, 1.0}
    half = head_from_state(even.state(torch.float16))
    difference = half.logits(data.features).double() - head.scores(data.features)
    assert difference.abs().max() < 2e-3 * head.scores(data.features).abs().max()
    tiny = head.to(torch.float32)  # rows that float32 has no scale for
    tiny.weights[6:9] = torch.tensor([1e-41, 1e-38, 1e-36])[:, None]
    scores = tiny.scores(data.features)
    for state in (evened(tiny).state(torch.float16), eight_bits(tiny)):
        for again in (state, eight_bits(head_from_state(state))):
            found = head_from_state(again).logits(data.features)
            assert (found - scores).abs().max() < 0.01 * scores.abs().max()


def test_eight_bits_are_the_nearest_of_255_values(fitted: tuple[Any, RidgeFit]) -> None:
    data, fit = fitted
    state = eight_bits(fit.head)
    weights, head = fit.head.weights, head_from_state(state)
    steps = weights.abs().amax(1, keepdim=True) / 127
    found = head.weights.double() / head.scale.double()[:, None] * fit.head.scale[:, None]
    assert ((found - weights).abs() <= steps * 0.5001).all()
    assert state["weights"].abs().amax(1).tolist() == [127] * 40
    scores = fit.head.scores(data.features)
    assert (head.scores(data.features.float()) - scores).abs().max() < 0.01 * scores.abs().max()


@pytest.mark.parametrize(
    ("budget", "kind", "dtype"),
    [
        (2000, ClassHead, torch.float32),
        (1100, ClassHead, torch.float16),
        (700, ClassHead, torch.int8),
        (600, LowRankHead, torch.int8),
    ],
)
def test_the_least_loss_within_a_budget(
    fitted: tuple[Any, RidgeFit], budget: int, kind: type, dtype: torch.dtype
) -> None:
    data, fit = fitted
    state = within(fit.head, data.features, budget)
    assert bytes_of(state) <= budget
    assert state["weights"].dtype == dtype
    head = head_from_state(state)
    assert isinstance(head, kind)
    if isinstance(head, LowRankHead):
        rank = head.right.shape[0]
        assert bytes_of(state) + (40 + 2 * 8) > budget  # one more would not fit
        expected = low_rank(fit.head, data.features, rank)
    else:
        expected = low_rank(fit.head, data.features, 99)
    logits = expected.logits(data.features, data.zero_shot)
    found = head.logits(data.features, data.zero_shot).double()
    assert (found - logits).abs().max() < 1e-2 * logits.abs().max()


def lacking(state: dict[str, Tensor], **change: Tensor | None) -> dict[str, Tensor]:
    return {name: t for name, t in (state | change).items() if t is not None}


def test_what_cannot_be_smaller(fitted: tuple[Any, RidgeFit]) -> None:
    data, fit = fitted
    with pytest.raises(ResiDualError, match="40 features and 8 classes in 100 bytes, which takes"):
        within(fit.head, data.features, 100)
    with pytest.raises(ResiDualError, match="a rank of 1 or more, got 0"):
        low_rank(fit.head, data.features, 0)
    state = low_rank(fit.head, data.features, 2).state()
    with pytest.raises(ResiDualError, match=r"a second factor \(2, 8\) .* got \(3, 8\)"):
        head_from_state(lacking(state, right=torch.zeros(3, 8)))
    with pytest.raises(ResiDualError, match="the two factors"):
        LowRankHead.from_state(lacking(state, right=None))
    with pytest.raises(ResiDualError, match="and its offset, got none of offset"):
        head_from_state(lacking(state, offset=None))


def test_without_images_the_rank_is_that_of_uncorrelated_features() -> None:
    """Where they are uncorrelated, nearly nothing is lost beside the rank that has seen them."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 1, 30, dtype=torch.float64)
    features = spread * torch.randn(4000, 30, generator=generator).double()
    weights = torch.randn(30, 8, generator=generator).double()
    head = ClassHead(features.mean(0), spread.sqrt(), weights, torch.arange(8).double())
    scores = head.scores(features)

    def lost(given: Tensor | None) -> float:
        small = low_rank(head, given, 3).expanded()
        return float((small.scores(features) - scores).square().mean())

    assert lost(features) <= lost(None) < 1.02 * lost(features)
    whole = low_rank(head, None, 8).expanded()
    torch.testing.assert_close(whole.scores(features), scores)
