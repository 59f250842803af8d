import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from residual_peft.classifiers.heads.projection import fit_projection
from residual_peft.errors import ResiDualError


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def case(count=24, columns=7, width=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(count) % classes
    features = 2 * normal(classes, columns)[labels] + normal(count, columns)
    return features, labels, unit(normal(classes, width)), normal(width, columns)


def slow_objective(matrix, features, labels, text, start, scale, strength):
    total = 0.0
    for row, label in zip(features, labels, strict=True):
        readout = matrix @ row
        logits = torch.stack([scale * (t @ readout) / readout.norm() for t in text])
        total = total - logits.log_softmax(0)[label]
    return total / len(features) + strength * (matrix - start).square().sum()


@pytest.mark.parametrize("columns", [7, 40])
def test_it_is_the_minimum_that_scipy_finds(columns):
    features, labels, text, start = case(columns=columns)
    fit = fit_projection(
        features, labels, text, start=start, logit_scale=8.0, strength=0.05, tolerance=1e-9
    )

    def function(flat):
        matrix = torch.from_numpy(flat).reshape(start.shape).requires_grad_(True)
        value = slow_objective(matrix, features, labels, text, start, 8.0, 0.05)
        value.backward()
        return value.item(), matrix.grad.numpy().ravel()

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    theirs = minimize(function, start.numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    np.testing.assert_allclose(fit.scorer.matrix.ravel(), theirs.x, atol=1e-5)


def test_without_a_strength_it_is_one_over_images_per_class():
    features, labels, text, start = case()
    fit = fit_projection(features, labels, text, start=start)
    assert fit.chosen["strength"] == pytest.approx(1 / 8)
    given = fit_projection(features, labels, text, start=start, strength=1 / 8)
    np.testing.assert_array_equal(fit.scorer.matrix, given.scorer.matrix)


def test_a_strong_penalty_leaves_the_projection_and_the_identity_is_the_default():
    features, labels, text, _ = case(columns=4)
    fit = fit_projection(features, labels, text, strength=1e9)
    np.testing.assert_allclose(fit.scorer.matrix, torch.eye(4), atol=1e-6)
    expected = 100 * unit(features) @ text.T
    np.testing.assert_allclose(fit.scorer.logits(features), expected, atol=1e-4)
    assert fit.parameter_count == 16 + 2


def test_the_strength_is_chosen_by_left_out_folds():
    features, labels, text, start = case(count=36, columns=30)
    strengths = [10.0, 0.1, 1e-4]
    fit = fit_projection(features, labels, text, start=start, logit_scale=5.0, strengths=strengths)
    raw = []
    for strength in strengths:
        one = fit_projection(
            features, labels, text, start=start, logit_scale=5.0, strength=strength
        )
        left = one.left_out.logits / one.temperature
        raw.append(float(torch.nn.functional.cross_entropy(left, labels)))
    assert fit.chosen["strength"] == strengths[int(np.argmin(raw))]


def test_shapes_and_strengths_are_checked():
    features, labels, text, start = case()
    with pytest.raises(ResiDualError, match=r"wanted a projection \(4, 7\).* got \(7, 4\)"):
        fit_projection(features, labels, text, start=start.T)
    with pytest.raises(ResiDualError, match="wanted strengths of the penalty above 0, got -1"):
        fit_projection(features, labels, text, start=start, strengths=[-1.0])
