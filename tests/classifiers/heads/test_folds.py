import pytest
import torch

from residual_peft.classifiers.heads.folds import stratified_folds
from residual_peft.errors import ResiDualError


def test_every_class_is_spread_evenly_and_the_same_way_in_every_run():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 23)
    labels = labels[torch.randperm(40, generator=torch.Generator().manual_seed(3))]
    fold = stratified_folds(labels)
    for label in range(3):
        sizes = fold[labels == label].bincount(minlength=5)
        assert int(sizes.max() - sizes.min()) <= 1
    assert fold.bincount().tolist() == [8] * 5
    assert torch.equal(fold, stratified_folds(labels))


def test_a_small_class_makes_fewer_folds_but_a_single_image_does_not():
    three = torch.tensor([0] * 10 + [1] * 3)
    assert int(stratified_folds(three).max()) == 2
    single = torch.tensor([0] * 10 + [1])
    assert int(stratified_folds(single).max()) == 4


def test_one_image_per_class_has_none():
    assert stratified_folds(torch.arange(6)) is None


def test_groups_stay_together_with_one_label_or_several():
    groups = torch.arange(40) // 4
    labels = torch.arange(40) % 2
    several = torch.stack([labels, 1 - labels], 1).double()
    for given in (labels, several):
        fold = stratified_folds(given, groups=groups)
        assert all(len(fold[groups == group].unique()) == 1 for group in range(10))
        assert len(fold.unique()) == 5


def test_fewer_than_two_folds_are_refused():
    with pytest.raises(ResiDualError, match="wanted two or more folds, got 1"):
        stratified_folds(torch.arange(4) % 2, folds=1)
