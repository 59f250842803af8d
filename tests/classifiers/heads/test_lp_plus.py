import numpy as np
import torch

from residual_peft.classifiers.heads.images import checked
from residual_peft.classifiers.heads.lp_plus import STOPS, descend, fit_lp_plus


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def loss_of(rows, labels, text, weights, text_weights):
    logits = rows @ weights + text * text_weights
    return -logits.log_softmax(1)[torch.arange(len(rows)), labels].mean()


def test_steps_are_gradient_steps_of_each_block_by_turns(task):
    features, labels, text = task(30, columns=6)
    rows = unit(features)
    found = descend(rows, checked(features, labels, 4, zero_shot=text), (0, 1, 3))
    means = [rows[labels == k].mean(0) for k in range(4)]
    weights = torch.stack([unit(mean) for mean in means], 1)
    text_weights = found[0][1]
    assert 0 < float(text_weights[0]) == float(text_weights[3])
    np.testing.assert_allclose(found[0][0], weights, atol=1e-12)
    steep = torch.linalg.eigvalsh(rows.T @ rows)[-1] / 60
    text_steep = (text**2).sum(0).max() / 60
    for step in range(1, 4):
        weights.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss_of(rows, labels, text, weights, text_weights), weights)
        weights = (weights - slope / steep).detach()
        text_weights.requires_grad_(True)
        loss = loss_of(rows, labels, text, weights, text_weights)
        (slope,) = torch.autograd.grad(loss, text_weights)
        text_weights = (text_weights - slope / text_steep).detach()
        if step != 2:
            np.testing.assert_allclose(found[(0, 1, 0, 2)[step]][0], weights, atol=1e-12)
            np.testing.assert_allclose(found[(0, 1, 0, 2)[step]][1], text_weights, atol=1e-12)


def test_the_loss_never_rises(task):
    features, labels, text = task(30, columns=50, text=0.0)
    rows = unit(features)
    stops = tuple(range(200))
    path = descend(rows, checked(features, labels, 4, zero_shot=5 * text), stops)
    losses = torch.stack([loss_of(rows, labels, 5 * text, *point) for point in path])
    assert (losses.diff() <= 1e-12).all()
    assert losses[-1] < 0.5 * losses[0]


def test_it_stops_where_left_out_folds_are_told_best(task):
    features, labels, text = task(60, columns=100, spread=0.3)
    fit = fit_lp_plus(features, labels, 4, zero_shot=text)
    assert fit.chosen["steps"] in STOPS
    assert 0 < fit.chosen["steps"] < max(STOPS)
    assert fit.left_out.how == "fold"
    assert fit.parameter_count == 100 * 4 + 4 + 2
    assert fit.text_weight == 0
    assert fit.left_out.log_loss < torch.nn.functional.cross_entropy(text, labels)


def test_without_text_and_with_one_image_per_class(task):
    features, labels, _ = task(4, columns=9)
    fit = fit_lp_plus(features, labels, 4)
    assert fit.left_out.how == "none"
    assert (fit.logits(features).argmax(1) == labels).all()
    assert fit.parameter_count == 9 * 4 + 2
