import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from residual_peft.classifiers.heads.head import ClassHead
from residual_peft.classifiers.heads.left_out import stratified_folds
from residual_peft.classifiers.heads.logistic import fit_logistic
from residual_peft.errors import ResiDualError


def some_images(count=60, columns=12, classes=4, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = spread * torch.randn(classes, columns, generator=generator, dtype=torch.float64)
    scales = torch.rand(columns, generator=generator, dtype=torch.float64) * 3 + 0.1
    noise = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    return (means[labels] + noise) * scales + 5, labels


@pytest.mark.parametrize(("columns", "strength"), [(12, 0.3), (100, 3.0)])
def test_it_is_scikit_learns(columns, strength):
    features, labels = some_images(columns=columns)
    fit = fit_logistic(features, labels, 4, strength=strength, power=1.0, tolerance=1e-9)
    prepared = (features - fit.head.mean) / fit.head.scale
    np.testing.assert_allclose(prepared.std(0, correction=0), 1, atol=1e-9)
    theirs = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10000)
    theirs.fit(prepared.numpy(), labels.numpy())
    np.testing.assert_allclose(fit.head.weights.T, theirs.coef_, atol=1e-5)
    centred = fit.head.offset - fit.head.offset.mean()
    np.testing.assert_allclose(centred, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5)
    assert fit.gradient_norm < 1e-6


def test_class_weights_are_scikit_learns():
    features, labels = some_images(count=50)
    labels[labels == 3] = 0
    wanted = torch.tensor([0.5, 2.0, 1.0])
    fit = fit_logistic(features, labels, 3, strength=1.0, class_weights=wanted, tolerance=1e-9)
    prepared = (features - fit.head.mean) / fit.head.scale
    each = wanted[labels] / wanted[labels].mean()
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000)
    theirs.fit(prepared.numpy(), labels.numpy(), sample_weight=each.numpy())
    np.testing.assert_allclose(fit.head.weights.T, theirs.coef_, atol=1e-5)


def test_several_labels_are_one_logistic_regression_per_class():
    features, labels = some_images(count=50)
    several = torch.zeros(50, 3)
    several[labels < 2, 0] = 1
    several[:, 1] = (features[:, 0] > features[:, 0].median()).float()
    several[::3, 2] = 1
    fit = fit_logistic(features, several, 3, strength=2.0, tolerance=1e-9)
    prepared = (features - fit.head.mean) / fit.head.scale
    for k in range(3):
        theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10000)
        theirs.fit(prepared.numpy(), several[:, k].numpy())
        np.testing.assert_allclose(fit.head.weights[:, k], theirs.coef_[0], atol=1e-5)
        np.testing.assert_allclose(fit.head.offset[k], theirs.intercept_[0], atol=1e-5)
    assert (fit.head.text_weight, fit.head.temperature) == (0.0, 1.0)


def test_left_out_predictions_are_those_of_fits_without_the_fold():
    features, labels = some_images(count=40, columns=60)
    fit = fit_logistic(features, labels, 4, strength=1.0)
    assert fit.left_out.how == "fold"
    assert fit.left_out.known.all()
    raw = fit.left_out.logits / fit.head.temperature
    fold = stratified_folds(labels)
    prepared = ((features - fit.head.mean) / fit.head.scale).numpy()
    for number in range(5):
        inside = (fold != number).numpy()
        theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000)
        theirs.fit(prepared[inside], labels[inside].numpy())
        expected = torch.from_numpy(theirs.predict_proba(prepared[~inside]))
        ours = raw[~inside].softmax(1)
        np.testing.assert_allclose(ours, expected, atol=5e-3)


def test_the_strength_is_the_best_of_the_path_and_weak_ones_are_not_tried_in_vain():
    features, labels = some_images(count=80, columns=200, spread=0.4)
    fit = fit_logistic(features, labels, 4)
    losses = dict(fit.path)
    assert losses[fit.strength] == min(losses.values())
    assert 3 <= len(fit.path) < 10
    assert fit.left_out.log_loss < np.log(4)


def test_many_images_choose_by_one_fold_and_are_all_left_out_at_what_it_chose():
    features, labels = some_images(count=520, columns=6, spread=0.5)
    fit = fit_logistic(features, labels, 4)
    given = fit_logistic(features, labels, 4, strength=fit.strength)
    assert len(fit.path) > 3
    np.testing.assert_allclose(fit.left_out.logits, given.left_out.logits, atol=1e-2)
    assert float(fit.left_out.logits.abs().amin(1).min()) > 0
    fold = stratified_folds(labels)
    first = fit.left_out.losses[fold == 0].mean()
    assert dict(fit.path)[fit.strength] == pytest.approx(float(first), rel=0.05)


def test_the_start_does_not_change_the_optimum():
    features, labels = some_images(columns=80)
    plain = fit_logistic(features, labels, 4, strength=0.5, tolerance=1e-9)
    generator = torch.Generator().manual_seed(3)
    start = ClassHead(
        plain.head.mean,
        plain.head.scale,
        torch.randn(80, 4, generator=generator, dtype=torch.float64),
        torch.randn(4, generator=generator, dtype=torch.float64),
    )
    other = fit_logistic(features, labels, 4, strength=0.5, start=start, tolerance=1e-9)
    np.testing.assert_allclose(other.head.weights, plain.head.weights, atol=1e-6)


def test_text_counts_as_much_as_left_out_images_say():
    features, labels = some_images(count=60, columns=30, spread=0.2)
    good = 4.0 * torch.nn.functional.one_hot(labels, 4).double()
    generator = torch.Generator().manual_seed(1)
    good += torch.randn(60, 4, generator=generator, dtype=torch.float64)
    helped = fit_logistic(features, labels, 4, zero_shot=good)
    misled = fit_logistic(features, labels, 4, zero_shot=-good)
    assert helped.head.text_weight > 0.3
    assert misled.head.text_weight == 0
    assert helped.left_out.log_loss < misled.left_out.log_loss
    assert helped.logits(features, good).shape == (60, 4)
    assert helped.parameter_count == 30 * 4 + 4 + 2


def test_one_image_per_class_takes_a_fixed_strength():
    features, labels = some_images(count=4)
    fit = fit_logistic(features, labels, 4)
    assert fit.left_out.how == "none"
    assert fit.path == ()
    assert (fit.head.logits(features).argmax(1) == labels).all()


def test_groups_stay_together():
    features, labels = some_images(count=40)
    groups = torch.arange(40) // 8
    fit = fit_logistic(features, labels, 4, groups=groups)
    assert fit.left_out.how == "group"


def test_strengths_are_above_0():
    features, labels = some_images()
    with pytest.raises(ResiDualError, match=r"wanted strengths of the penalty above 0, got -1\.0"):
        fit_logistic(features, labels, 4, strength=-1.0)
