import numpy as np
import pytest
import torch
from sklearn.covariance import oas as their_oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from residual_peft.classifiers.heads.discriminant import fit_discriminant, shrinkage_of
from residual_peft.errors import ResiDualError
from tests.pairs import table


def some_images(count, columns, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    sure = torch.arange(2 * classes)[:count]
    labels[: len(sure)] = sure % classes
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    means = 2 * torch.randn(classes, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    return means[labels] + noise @ mixing / columns**0.5, labels


def residuals_of(rows, labels):
    pairs = zip(rows, labels, strict=True)
    return torch.stack([row - rows[labels == label].mean(0) for row, label in pairs])


@pytest.mark.parametrize(("count", "columns"), [(40, 6), (20, 50)])
def test_it_is_scikit_learns(count, columns):
    features, labels = some_images(count, columns)
    fit = fit_discriminant(features, labels, 3, shrinkage=0.3)
    rows = (features - fit.head.mean) / fit.head.scale
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(rows, labels)
    np.testing.assert_allclose(
        fit.head.scores(features).softmax(1), theirs.predict_proba(rows), atol=1e-9
    )


@table(("count", "columns"), [(40, 6), (20, 50), (7, 90)])
def test_the_shrinkage_is_scikit_learns(count, columns):
    features, labels = some_images(count, columns)
    residuals = residuals_of(features, labels)
    _, wanted = their_oas(residuals.numpy(), assume_centered=True)
    assert shrinkage_of(residuals, "oas") == pytest.approx(wanted, rel=1e-9)
    assert 0 < wanted < 1


@pytest.mark.parametrize(("count", "columns"), [(30, 5), (12, 40)])
def test_left_out_distances_are_those_of_a_fit_without_the_image(count, columns):
    features, labels = some_images(count, columns)
    fit = fit_discriminant(features, labels, 3, shrinkage=0.2)
    rows = (features - fit.model.mean) / fit.model.scale
    scatter = residuals_of(rows, labels)
    level = 0.2 * scatter.square().sum() / count / columns
    for row in range(count):
        kept = torch.arange(count) != row
        means = torch.stack([rows[kept & (labels == k)].mean(0) for k in range(3)])
        without = residuals_of(rows[kept], labels[kept])
        covariance = 0.8 * without.mT @ without / count + level * torch.eye(columns).double()
        away = rows[row] - means
        expected = (away @ covariance.inverse() * away).sum(1)
        np.testing.assert_allclose(fit.model.squared[row], expected, rtol=1e-8)


def test_left_out_images_are_told_as_new_ones_are_and_not_as_training_images():
    features, labels = some_images(300, 60, seed=2)
    train, test = features[:60], features[60:]
    fit = fit_discriminant(train, labels[:60], 3)
    inside = fit.model.distances(train).amin(1).median()
    outside = fit.model.distances(test).amin(1).median()
    left_out = fit.model.squared.amin(1).median()
    assert inside < 0.8 * outside
    assert float(left_out) == pytest.approx(float(outside), rel=0.2)
    assert fit.left_out.how == "one"


def test_the_only_image_of_a_class_is_not_known_without_it():
    features, labels = some_images(20, 30)
    features, labels = torch.vstack([features, features[:1] + 9]), torch.cat([labels, labels[:1]])
    labels[-1] = 3
    fit = fit_discriminant(features, labels, 4)
    assert fit.left_out.known.tolist() == [True] * 20 + [False]
    assert torch.isinf(fit.model.squared[-1, 3])
    assert torch.isfinite(fit.left_out.logits).all()
    assert int(fit.head.logits(features[-1:]).argmax()) == 3


def test_one_image_per_class_is_the_nearest_mean():
    features, _ = some_images(5, 30)
    labels = torch.arange(5)
    fit = fit_discriminant(features, labels, 5)
    assert fit.left_out.how == "none"
    new = features + 0.01
    rows = (new - fit.head.mean) / fit.head.scale
    nearest = torch.cdist(rows, fit.model.centres).argmin(1)
    assert (fit.logits(new).argmax(1) == nearest).all()
    # so it is with three copies of each, whose mean is rounded: no distance within a class is told
    three = fit_discriminant(features.repeat(3, 1), labels.repeat(3), 5)
    assert three.model.covariance.level == pytest.approx(fit.model.covariance.level)
    np.testing.assert_allclose(three.head.scores(new), fit.head.scores(new), rtol=1e-6, atol=1e-6)


def test_class_weights_move_the_priors():
    features, labels = some_images(40, 6)
    plain = fit_discriminant(features, labels, 3)
    heavy = fit_discriminant(features, labels, 3, class_weights=torch.tensor([5.0, 1.0, 1.0]))
    share = plain.model.priors * torch.tensor([5.0, 1.0, 1.0])
    np.testing.assert_allclose(heavy.model.priors, share / share.sum())


def test_what_has_no_inverse_is_one_line():
    features, labels = some_images(12, 40)
    with pytest.raises(ResiDualError, match="wanted a covariance with an inverse, got one of 12"):
        fit_discriminant(features, labels, 3, shrinkage=0.0)
    with pytest.raises(ResiDualError, match="without any one of 12 images, too, got one with a"):
        fit_discriminant(features[:, :9], labels, 3, shrinkage=0.0)
    with pytest.raises(ResiDualError, match=r"wanted a shrinkage from 0 to 1, got 2"):
        fit_discriminant(features, labels, 3, shrinkage=2.0)
    with pytest.raises(ResiDualError, match="got several labels per image: use the ridge"):
        fit_discriminant(features, torch.ones(12, 3), 3)
