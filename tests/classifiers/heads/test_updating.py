"""A ridge head changed by its sums is the one that a fit from scratch gives, in float64."""

import pytest
import torch

from residual_peft.classifiers.heads import (
    HeadStatistics,
    RidgeSums,
    balanced_weights,
    fit_ridge,
    fit_statistics,
)
from residual_peft.errors import ResiDualError

CLASSES = 4
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def drawn(count=70, columns=6, seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, columns, generator=generator).double()
    features = features @ torch.randn(columns, columns, generator=generator).double() + 3
    return features, torch.arange(count) % classes


def summed(fit, features, labels, **options):
    sums = RidgeSums(
        HeadStatistics(features.shape[1], len(fit.settings.alpha), **options), fit.settings
    )
    sums.add(features, labels)
    return sums


def scratch(fit, features, labels, **options):
    """The twin: rows, the same scales and one strength."""
    classes = int(labels.max()) + 1
    return fit_ridge(
        features, labels, classes, scale=fit.settings.scale, alphas=[float(fit.alpha[0])], **options
    ).head


def same(head, expected):
    for name in ("mean", "scale", "weights", "offset"):
        torch.testing.assert_close(getattr(head, name), getattr(expected, name), **CLOSE, msg=name)


@pytest.mark.parametrize(("columns", "weighted"), [(6, False), (90, False), (6, True)])
def test_the_head_of_the_sums_is_that_of_the_rows(columns, weighted):
    features, labels = drawn(columns=columns)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]).double() if weighted else None
    fit = fit_ridge(features, labels, CLASSES, class_weights=weights)
    sums = summed(fit, features, labels)
    head = sums.head(0.3, 7.0)
    same(head, fit.head)
    assert (head.text_weight, head.temperature) == (0.3, 7.0)
    alpha, scale = fit.alpha, fit.settings.scale
    same(head, fit_statistics(sums.statistics, alpha=alpha, scale=scale).head)


@pytest.mark.parametrize("weighted", [False, True])
def test_more_images_and_fewer_are_as_a_fit_from_scratch(weighted):
    features, labels = drawn()
    options = {"class_weights": torch.tensor([1.0, 2.0, 0.5, 3.0])} if weighted else {}
    fit = fit_ridge(features[:50], labels[:50], CLASSES, **options)
    sums = summed(fit, features[:50], labels[:50])
    sums.add(features[50:], labels[50:])
    same(sums.head(0, 1), scratch(fit, features, labels, **options))
    gone = torch.arange(70) % 3 == 1
    sums.forget(features[gone], labels[gone])
    same(sums.head(0, 1), scratch(fit, features[~gone], labels[~gone], **options))


@pytest.mark.parametrize("per_class", [False, True])
def test_a_class_comes_and_goes(per_class):
    features, labels = drawn()
    old = labels < 3
    fit = fit_ridge(features[old], labels[old], 3)
    sums = summed(fit, features[old], labels[old], per_class=per_class)
    assert sums.add_class(features[~old]) == 3
    same(sums.head(0, 1), scratch(fit, features, labels))
    sums.remove_class(1, None if per_class else features[labels == 1])
    kept = labels != 1
    same(sums.head(0, 1), scratch(fit, features[kept], torch.tensor([0, -1, 1, 2])[labels[kept]]))


def test_a_class_comes_and_goes_where_classes_weigh_differently():
    features, labels = drawn()
    old = labels < 3
    weights = torch.tensor([1.0, 2.0, 0.5]).double()
    fit = fit_ridge(features[old], labels[old], 3, class_weights=weights)
    sums = summed(fit, features[old], labels[old])
    total = float(sums.statistics.total)
    sums.add_class(features[~old])
    assert float(sums.statistics.counts[3]) == pytest.approx(total / 3)
    more = sums.settings.class_weights
    same(sums.head(0, 1), scratch(fit, features, labels, class_weights=more))
    sums.remove_class(1, features[labels == 1])
    kept = labels != 1
    moved = torch.tensor([0, -1, 1, 2])[labels[kept]]
    same(sums.head(0, 1), scratch(fit, features[kept], moved, class_weights=more[[0, 2, 3]]))


def test_balanced_weights_are_kept():
    features, labels = drawn()
    labels = labels.clamp_max(2)
    fit = fit_ridge(features, labels, 3, class_weights=balanced_weights(labels, 3))
    same(summed(fit, features, labels).head(0, 1), fit.head)


def test_several_labels_keep_a_strength_and_a_line_for_each_class():
    features, _ = drawn()
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(70, CLASSES, generator=generator) < 0.4).long()
    fit = fit_ridge(features, labels, CLASSES)
    assert len(fit.alpha.unique()) > 1
    sums = summed(fit, features[:50], labels[:50])
    sums.add(features[50:], labels[50:])
    same(sums.head(0, 1), fit.head)


def test_they_are_saved_and_loaded():
    features, labels = drawn()
    fit = fit_ridge(features, labels, CLASSES)
    sums = summed(fit, features, labels, source="here")
    loaded = RidgeSums.from_state(sums.state(), "here")
    same(loaded.head(0, 1), sums.head(0, 1))
    state = sums.state()
    del state["settings.alpha"]
    with pytest.raises(ResiDualError, match="settings beside its sums, got none of alpha"):
        RidgeSums.from_state(state)
    state = sums.state() | {"settings.slopes": torch.ones(3)}
    with pytest.raises(ResiDualError, match=r"each class of a ridge.*slopes \(3,\)"):
        RidgeSums.from_state(state)
    state = sums.state() | {"settings.scale": torch.zeros(6)}
    with pytest.raises(ResiDualError, match="above 0 as a ridge's settings"):
        RidgeSums.from_state(state)
    state = sums.state() | {"settings.scale": torch.ones(5)}
    with pytest.raises(ResiDualError, match="of different heads"):
        RidgeSums.from_state(state)


def test_what_cannot_be_is_refused_and_changes_nothing():
    features, labels = drawn()
    fit = fit_ridge(features, labels, CLASSES)
    sums = summed(fit, features, labels)
    before = sums.state()
    own = labels == 2
    with pytest.raises(
        ResiDualError, match=r"got none of class 2.*: ZeroShotClassifier.remove_class"
    ):
        sums.forget(features[own], labels[own])
    with pytest.raises(ResiDualError, match="images that were added"):
        sums.forget(1000 + features[:3], labels[:3])
    with pytest.raises(ResiDualError, match="labels from 0 to 3"):
        sums.add(features[:1], torch.tensor([4]))
    with pytest.raises(ResiDualError, match="images of the new class, got none"):
        sums.add_class(features[:0])
    with pytest.raises(ResiDualError, match="finite features"):
        sums.add_class(features[:1] * torch.nan)
    with pytest.raises(ResiDualError, match="wanted the 17 images of class 2"):
        sums.remove_class(2)
    for name, tensor in sums.state().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
