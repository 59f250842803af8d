import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.gaussian import fit_gaussian
from residual_peft.classifiers.heads.left_out import stratified_folds


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def slow_gda(rows, labels, classes):
    """The paper's formula, the precision matrix written out."""
    count, columns = rows.shape
    means = torch.stack([rows[labels == k].mean(0) for k in range(classes)])
    away = rows - means[labels]
    covariance = away.T @ away / (count - 1)
    identity = torch.eye(columns, dtype=rows.dtype)
    precision = columns * ((count - 1) * covariance + covariance.trace() * identity).inverse()
    shares = torch.stack([(labels == k).double().mean() for k in range(classes)])
    offset = shares.log() - 0.5 * (means @ precision * means).sum(1)
    return (precision @ means.T), offset


@pytest.mark.parametrize("columns", [6, 60])
def test_it_is_the_papers_formula(task, columns):
    features, labels, _ = task(20, columns)
    fit = fit_gaussian(features, labels, 4)
    weights, offset = slow_gda(unit(features), labels, 4)
    np.testing.assert_allclose(fit.scorer.weights, weights, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fit.scorer.offset, offset, rtol=1e-8, atol=1e-9)


def test_left_out_logits_are_those_without_the_fold(task):
    features, labels, zero_shot = task(20, 30)
    fit = fit_gaussian(features, labels, 4, zero_shot=zero_shot)
    fold, rows = stratified_folds(labels), unit(features)
    assert fit.text_weight > 0
    for number in range(5):
        out = fold == number
        weights, offset = slow_gda(rows[~out], labels[~out], 4)
        expected = fit.temperature * (rows[out] @ weights + offset)
        expected += fit.text_weight * zero_shot[out]
        np.testing.assert_allclose(fit.left_out.logits[out], expected, rtol=1e-7)


def test_one_image_per_class_is_the_nearest_mean(task):
    features, labels, _ = task(4)
    fit = fit_gaussian(features, labels, 4)
    assert fit.left_out.how == "none"
    assert (fit.logits(features).argmax(1) == labels).all()
    # and with copies, whose mean is rounded
    three = fit_gaussian(features.repeat(3, 1), labels.repeat(3), 4)
    np.testing.assert_allclose(three.scorer.weights, fit.scorer.weights, rtol=1e-9)


def test_centred_and_scaled_features(task):
    features, labels, _ = task(24, 8)
    fit = fit_gaussian(features, labels, 4, power=0.5)
    prepared = (features - features.mean(0)) / features.std(0, correction=0).sqrt()
    weights, _ = slow_gda(unit(prepared), labels, 4)
    np.testing.assert_allclose(fit.scorer.weights, weights, rtol=1e-8, atol=1e-9)
