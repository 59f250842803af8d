"""Who is left out with whom, and what is said of it."""

import math
import warnings

import pytest
import torch

from residual_peft.classifiers.heads.left_out import LeftOut, leaving_of, stratified_folds
from residual_peft.errors import ResiDualError


def test_blocks_hold_one_image_of_every_class_that_has_any_left() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 0])  # 4, 1 and 3 images
    leaving = leaving_of(labels, 3)
    assert leaving.how == "block"
    assert sorted(torch.cat(leaving.parts).tolist()) == list(range(8))
    assert [sorted(labels[part].tolist()) for part in leaving.parts] == [
        [0, 1, 2],
        [0, 2],
        [0, 2],
        [0],
    ]
    # class 1 has one image: nothing is known of it without
    assert leaving.known.tolist() == [True, True, False, *[True] * 5]


def test_what_is_left_out_by_the_size_of_the_rarest_class() -> None:
    few, many = torch.arange(62) % 2, torch.arange(64) % 2
    assert (leaving_of(few, 2).how, leaving_of(many, 2).how) == ("block", "one")
    assert leaving_of(torch.tensor([1, 0, 2]), 3).how == "none"
    assert not leaving_of(torch.tensor([1, 0, 2]), 3).known.any()
    assert leaving_of(few, 2, how="one").how == "one"


def test_groups_go_together_whatever_they_are_called() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    by_number = leaving_of(labels, 3, torch.tensor([7, 3, 3, 7, 9, 9]))
    by_name = leaving_of(labels, 3, ["b", "a", "a", "b", "c", "c"])
    for leaving in (by_number, by_name):
        assert leaving.how == "group"
        assert sorted(sorted(part.tolist()) for part in leaving.parts) == [[0, 3], [1, 2], [4, 5]]
        # class 2's only image is in the last group
        assert leaving.known.tolist() == [True] * 5 + [False]


def test_several_labels_are_left_out_one_by_one() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]])
    leaving = leaving_of(labels, 2)
    assert leaving.how == "one"
    assert leaving.known.tolist() == [True, False, True, True]  # nobody else has class 1


def test_losses_and_accuracy_are_of_images_whose_class_was_known() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    left_out = LeftOut(logits, torch.tensor([0, 0, 1]), "one", torch.tensor([True, True, False]))
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(3))]
    assert left_out.losses.tolist() == pytest.approx(expected)
    assert left_out.log_loss == pytest.approx(sum(expected[:2]) / 2)
    assert left_out.accuracy == 0.5


def test_losses_of_several_labels() -> None:
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 1]])
    left_out = LeftOut(logits, labels, "one", torch.tensor([True]))
    assert left_out.log_loss == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.e))
    assert left_out.accuracy == 0.5


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.zeros(6), "wanted at least two groups of images, got one"),
        (["a"], "wanted one group for each of 6 images, got 1"),
    ],
)
def test_groups_that_are_none(groups: object, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        leaving_of(torch.arange(6) % 3, 3, groups)  # type: ignore[arg-type]


def test_blocks_need_one_label_per_image() -> None:
    with pytest.raises(
        ResiDualError, match="got several labels per image: leave out one image at a time"
    ):
        leaving_of(torch.ones(4, 2), 2, how="block")


def test_every_class_is_spread_evenly_and_the_same_way_in_every_run() -> None:
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 23)
    labels = labels[torch.randperm(40, generator=torch.Generator().manual_seed(3))]
    fold = stratified_folds(labels)
    for label in range(3):
        sizes = fold[labels == label].bincount(minlength=5)
        assert int(sizes.max() - sizes.min()) <= 1
    assert fold.bincount().tolist() == [8] * 5
    assert torch.equal(fold, stratified_folds(labels))


def test_a_small_class_makes_fewer_folds_but_a_single_image_does_not() -> None:
    three = torch.tensor([0] * 10 + [1] * 3)
    assert int(stratified_folds(three).max()) == 2
    single = torch.tensor([0] * 10 + [1])
    assert int(stratified_folds(single).max()) == 4


def test_one_image_per_class_has_none() -> None:
    assert stratified_folds(torch.arange(6)) is None


def test_groups_stay_together_with_one_label_or_several() -> None:
    groups = torch.arange(40) // 4
    labels = torch.arange(40) % 2
    several = torch.stack([labels, 1 - labels], 1).double()
    for given in (labels, several):
        fold = stratified_folds(given, groups=groups)
        assert all(len(fold[groups == group].unique()) == 1 for group in range(10))
        assert len(fold.unique()) == 5
    labels[0] = 2  # alone in its class, of which scikit-learn would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(stratified_folds(labels, groups=groups).unique()) == 5


def test_fewer_than_two_folds_are_refused() -> None:
    with pytest.raises(ResiDualError, match="wanted two or more folds, got 1"):
        stratified_folds(torch.arange(4) % 2, folds=1)
