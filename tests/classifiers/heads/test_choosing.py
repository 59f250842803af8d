"""The choice among features and powers by images left out; ties go to fewer numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.heads import Candidate, LeftOut, choose_ridge, fewest_as_good
from residual_peft.classifiers.heads.choosing import best_recall
from residual_peft.classifiers.heads.images import balanced_weights
from residual_peft.errors import ResiDualError


def said(logits: Tensor, labels: Tensor, known: Tensor | None = None) -> LeftOut:
    known = torch.ones(len(labels), dtype=torch.bool) if known is None else known
    return LeftOut(logits, labels, "one", known)


def test_the_least_loss_unless_it_is_a_tie() -> None:
    labels = torch.arange(100) % 2
    right = torch.eye(2).double()[labels]
    noise = 0.5 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
    large = Candidate("large", said(4 * right, labels), 1000)
    near = Candidate("near", said(4 * right + noise, labels), 100)
    worse = Candidate("worse", said(2 * right, labels), 10)
    assert large.left_out.log_loss < worse.left_out.log_loss
    assert fewest_as_good([worse, large]) == 1
    gap = near.left_out.losses - large.left_out.losses
    error = float(gap.std(correction=0)) / 10
    inside, outside = (float(gap.mean().abs()) / error * factor for factor in (1.01, 0.99))
    best = [large, near] if float(gap.mean()) > 0 else [near, large]
    few = Candidate("few", best[1].left_out, 5)
    many = Candidate("many", best[0].left_out, 50)
    assert fewest_as_good([many, few], tie=inside) == 1
    assert fewest_as_good([many, few], tie=outside) == 0


def test_of_equal_numbers_in_a_tie_the_better() -> None:
    labels = torch.arange(100) % 2
    right = torch.eye(2).double()[labels]
    pair = [
        Candidate("a", said(3.9 * right, labels), 9),
        Candidate("b", said(4 * right, labels), 9),
    ]
    assert fewest_as_good(pair, tie=1e9) == 1


def test_weights_decide_whose_losses_count() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    first = said(torch.tensor([[3.0, 0.0]]).repeat(100, 1), labels)  # good for class 0
    second = said(torch.tensor([[0.0, 2.0]]).repeat(100, 1), labels)
    pair = [Candidate("first", first, 1), Candidate("second", second, 1)]
    assert fewest_as_good(pair) == 0
    assert fewest_as_good(pair, torch.tensor([1.0] * 90 + [50.0] * 10)) == 1

    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 60 + [2] * 15)
    rows = torch.randn(2, 135, 4, generator=generator)
    rows[0, :, 0] += 2.0 * (labels == 0) - 2.0 * (labels == 1)  # nothing of the small class
    rows[1, :, 1] += 4.0 * (labels == 2)  # nothing of the others
    features = {"many": rows[0], "few": rows[1]}
    for weights, best in ((None, "many"), (torch.tensor([1.0, 1.0, 8.0]), "few")):
        assert choose_ridge(features, labels, 3, class_weights=weights).name == best


def test_the_best_recall_unless_it_is_a_tie_that_the_loss_decides() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 100, 2, generator=generator).double()
    logits[:, 90:, 1] += torch.arange(6.0).unsqueeze(1) / 3
    # the largest class alone is the most accurate by far, and of no recall worth the name
    largest = said(torch.tensor([[9.0, 0.0]]).double().repeat(100, 1), labels)
    every = [Candidate(f"{i}", said(one, labels), i) for i, one in enumerate(logits)]
    every.append(Candidate("largest", largest, 0))
    recalls = [
        float(
            torch.stack(
                [(one.left_out.logits.argmax(1) == k)[labels == k].double().mean() for k in (0, 1)]
            ).mean()
        )
        for one in every
    ]
    assert best_recall(every, tie=0.0) == max(range(7), key=recalls.__getitem__)
    for one, recall in zip(every, recalls, strict=True):
        assert one.left_out.recall == pytest.approx(recall)
    assert largest.accuracy == max(one.left_out.accuracy for one in every)
    sure = Candidate("sure", said(3 * logits[5], labels), 50)
    flat = Candidate("flat", said(0.01 * logits[5], labels), 5)
    losses = [
        float((one.left_out.losses / labels.bincount()[labels]).sum()) for one in (sure, flat)
    ]
    assert best_recall([sure, flat]) == int(losses[1] < losses[0])


def test_images_of_unknown_class_do_not_count() -> None:
    labels = torch.arange(4) % 2
    known = torch.tensor([True, True, True, False])
    wrong = torch.eye(2).double()[labels]
    wrong[3] = -50 * wrong[3]
    pair = [
        Candidate("a", said(torch.zeros(4, 2).double(), labels), 1),
        Candidate("b", said(wrong, labels, known), 1),
    ]
    assert fewest_as_good(pair) == 1
    none = Candidate("c", said(wrong, labels, torch.zeros(4, dtype=torch.bool)), 1)
    assert fewest_as_good([*pair, none]) == 0


def test_the_features_that_know_are_chosen(drawn: Any) -> None:
    data = drawn((12, 12, 12), 10, apart=1.5)
    noise = torch.randn(36, 4, generator=torch.Generator().manual_seed(1))
    features = {"noise": noise, "data": data.features}
    chosen = choose_ridge(features, data.labels, 3, zero_shot=data.zero_shot, powers=(0.5, 1.0))
    assert chosen.name == "data"
    assert [line.name for line in chosen.tried] == [
        f"{name}, p = {power}" for name in features for power in ("0.5", "1")
    ]
    assert chosen.images == 36
    best = min(chosen.tried, key=lambda line: line.left_out.log_loss)
    assert best.name == f"data, p = {chosen.fit.power:g}"
    assert chosen.fit.left_out.log_loss == pytest.approx(best.left_out.log_loss)


def test_equal_features_are_a_tie_that_the_smaller_wins(drawn: Any) -> None:
    data = drawn((12, 12, 12), 10, apart=1.5)
    twice = torch.cat([data.features, data.features], 1)
    chosen = choose_ridge({"twice": twice, "once": data.features}, data.labels, 3, powers=(0.0,))
    assert chosen.name == "once"


def test_one_image_per_class_takes_the_first(drawn: Any) -> None:
    data = drawn((1, 1, 1), 10)
    features = {"b": data.features, "a": data.features[:, :4]}
    chosen = choose_ridge(features, data.labels, 3)
    assert (chosen.name, chosen.fit.power) == ("b", 0.5)


@pytest.mark.parametrize("several", [False, True])
def test_a_choice_on_some_of_the_images_and_a_fit_on_all(drawn: Any, several: bool) -> None:
    data = drawn((60, 3, 37), 10)
    labels = torch.eye(3)[data.labels] if several else data.labels
    chosen = choose_ridge(
        {"all": data.features, "few": data.features[:, :4]},
        labels,
        3,
        at_most=40,
        zero_shot=data.zero_shot,
        groups=[f"film {row // 2}" for row in range(100)],
        class_weights=None if several else balanced_weights(data.labels, 3),
    )
    assert 38 <= chosen.images <= 42
    assert len(chosen.fit.left_out.labels) == 100
    again = choose_ridge({"all": data.features}, data.labels, 3, at_most=40)
    assert {line.parameter_count for line in again.tried} == {10 * 3 + 3 + 2}


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ResiDualError, match="features and powers to try, got none"):
        choose_ridge({}, torch.arange(4) % 2, 2)
    with pytest.raises(ResiDualError, match="at least one way to tell classes apart"):
        fewest_as_good([])
    labels = torch.arange(4) % 2
    pair = [
        Candidate(name, said(torch.zeros(4, 2), each), 1)
        for name, each in (("this", labels), ("that", 1 - labels))
    ]
    with pytest.raises(ResiDualError, match="what that says of the images that this was asked"):
        fewest_as_good(pair)
