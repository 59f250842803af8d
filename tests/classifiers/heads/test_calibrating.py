"""Text weight and temperature against scipy, and where they have no end."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, root
from torch import Tensor
from torch.nn import functional

from residual_peft.classifiers.heads.calibrating import LEAST_TEMPERATURE, calibrate, platt
from tests.pairs import table


def with_one_uniform_image(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    share = weights / weights.sum()
    own = functional.cross_entropy(logits, labels, reduction="none")
    return float(share @ (own - logits.log_softmax(1).mean(1) / len(labels)))


@table(("classes", "text"), [(3, True), (2, True), (4, False)])
def test_the_two_numbers_are_the_optimum(drawn: Any, classes: int, text: bool) -> None:
    data = drawn((9,) * classes, 5)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(9 * classes, classes, generator=generator, dtype=torch.float64)
    scores = 0.1 * (torch.eye(classes).double()[data.labels] + noise)
    zero_shot = 40 + 3 * data.zero_shot if text else None
    weights = torch.rand(9 * classes, generator=torch.Generator().manual_seed(1)).double() + 0.1

    def loss(beta: Any) -> float:
        logits = float(beta[0]) * scores
        if zero_shot is not None:
            logits = logits + float(beta[1]) * zero_shot
        return with_one_uniform_image(logits, data.labels, weights)

    start = np.zeros(2 if text else 1)
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000}
    theirs = minimize(loss, start, method="Nelder-Mead", options=options)
    found = calibrate(scores, data.labels, weights, zero_shot)
    own = [found.temperature, found.text_weight][: len(start)]
    assert min(theirs.x) > 0
    assert own == pytest.approx(theirs.x.tolist(), rel=1e-4)
    logits = found.temperature * scores
    logits = logits if zero_shot is None else logits + found.text_weight * zero_shot
    losses = functional.cross_entropy(logits, data.labels, reduction="none")
    assert found.loss == pytest.approx(float((weights * losses).sum() / weights.sum()))


def test_where_all_are_told_right_the_temperature_is_finite() -> None:
    labels = torch.arange(40) % 4
    found = calibrate(torch.eye(4).double()[labels], labels, torch.ones(40).double())
    # e^τ / (e^τ + 3) = (1 + 1 / 160) / (1 + 1 / 40): one image in 41 is uniform
    share = (1 + 0.25 / 40) / (1 + 1 / 40)
    assert found.temperature == pytest.approx(np.log(3 * share / (1 - share)), rel=1e-6)


def test_what_misleads_has_next_to_no_say() -> None:
    labels = torch.arange(40) % 4
    one_hot, ones = torch.eye(4).double()[labels], torch.ones(40).double()
    assert calibrate(-one_hot, labels, ones).temperature == LEAST_TEMPERATURE
    # as little of large scores, a discriminant's, as of small ones
    assert calibrate(-1e6 * one_hot, labels, ones).loss == pytest.approx(np.log(4), abs=0.01)
    assert calibrate(one_hot, labels, ones, -one_hot).text_weight == 0
    both = calibrate(-one_hot, labels, ones, one_hot)
    assert both.temperature == LEAST_TEMPERATURE
    assert both.text_weight > 1
    assert calibrate(0 * one_hot, labels, ones).loss == pytest.approx(np.log(4))


def test_lines_of_several_labels_are_the_optimum_for_platts_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    targets = (scores * torch.tensor([2.0, 0.5, 1.0]) + noise > 0.7).double()
    scores = 0.01 * scores + 5
    slopes, biases = platt(scores, targets)
    for c in range(3):
        inside = float(targets[:, c].sum())
        outside = 30 - inside
        soft = torch.where(targets[:, c] > 0, (inside + 1) / (inside + 2), 1 / (outside + 2))

        def gradient(line: Any, c: int = c, soft: Tensor = soft) -> list[float]:
            x = 100 * (scores[:, c] - 5)
            error = torch.sigmoid(float(line[0]) * x + float(line[1])) - soft
            return [float((error * x).mean()), float(error.mean())]

        theirs = root(gradient, np.zeros(2), tol=1e-12).x
        assert float(slopes[c]) == pytest.approx(100 * theirs[0], rel=1e-6)
        assert float(biases[c]) == pytest.approx(theirs[1] - 500 * theirs[0], rel=1e-4)


def test_a_line_never_runs_down() -> None:
    targets = (torch.arange(20) < 5).double().unsqueeze(1)
    slopes, biases = platt(-targets, targets)
    assert float(slopes) == 0
    assert 0 < float(torch.sigmoid(biases)) < 0.5
    assert torch.isfinite(torch.stack(platt(targets, targets))).all()
    assert torch.isfinite(torch.stack(platt(0 * targets, targets))).all()
