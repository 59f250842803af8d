import math

import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.images import checked
from residual_peft.classifiers.heads.tip_adapter import (
    SHARPNESSES,
    WEIGHTS,
    fit_tip_adapter,
    fit_tip_adapter_f,
    train_keys,
)


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def slow_logits(keys, labels, classes, row, text, sharpness, weight):
    """The paper's formula, one key after the other."""
    logits = [float(value) for value in text]
    for key, label in zip(keys, labels, strict=True):
        logits[int(label)] += weight * math.exp(-sharpness * (1 - float(key @ row)))
    return torch.tensor(logits, dtype=torch.float64)


def test_logits_and_left_out_logits_equal_a_loop(task):
    features, labels, zero_shot = task(128, columns=6)
    fit = fit_tip_adapter(features, labels, 4, zero_shot=zero_shot)
    numbers = (fit.chosen["sharpness"], fit.chosen["weight"])
    keys = unit(features)
    for row in (0, 13, 50):
        expected = slow_logits(keys, labels, 4, keys[row], zero_shot[row], *numbers)
        got = fit.scorer.logits(features[row : row + 1], zero_shot[row : row + 1])[0]
        np.testing.assert_allclose(got, expected, atol=1e-10)
        others = [r for r in range(128) if r != row]
        expected = slow_logits(keys[others], labels[others], 4, keys[row], zero_shot[row], *numbers)
        got = fit.left_out.logits[row] / fit.temperature
        np.testing.assert_allclose(got, expected, atol=1e-9)
    assert fit.text_weight == 0


def test_its_numbers_are_the_best_of_all_pairs(task):
    features, labels, zero_shot = task(24, columns=5)
    fit = fit_tip_adapter(features, labels, 4, zero_shot=zero_shot)
    assert fit.left_out.how == "block"
    keys, best = unit(features), (math.inf, None)
    for sharpness in SHARPNESSES:
        for weight in WEIGHTS:
            loss = 0.0
            for row in range(24):
                kept = [r for r in range(24) if r // 4 != row // 4]
                logits = slow_logits(
                    keys[kept], labels[kept], 4, keys[row], zero_shot[row], sharpness, weight
                )
                loss -= float(logits.log_softmax(0)[labels[row]]) / 24
            best = min(best, (loss, (sharpness, weight)))
    assert (fit.chosen["sharpness"], fit.chosen["weight"]) == best[1]


def test_keys_are_trained_by_adamw_with_a_cosine(task):
    features, labels, zero_shot = task(12, columns=5)
    data = checked(features, labels, 4, zero_shot=zero_shot)
    keys, beta, alpha, epochs, rate = unit(features), 2.0, 3.0, 4, 0.01
    stops = (1, 3, 4)
    found = train_keys(keys, data, beta, alpha, stops=stops, epochs=epochs, rate=rate)
    # AdamW by hand, with the gradient by the chain rule: I. Loshchilov and F. Hutter, 2019
    slow, first, second = keys.clone(), torch.zeros_like(keys), torch.zeros_like(keys)
    for step in range(1, epochs + 1):
        gradient = torch.zeros_like(slow)
        for row in range(12):
            logits = slow_logits(slow, labels, 4, keys[row], zero_shot[row], beta, alpha)
            error = logits.softmax(0) - torch.eye(4)[labels[row]]
            for key in range(12):
                affinity = math.exp(-beta * (1 - float(slow[key] @ keys[row])))
                change = error[labels[key]] * alpha * affinity * beta * keys[row]
                gradient[key] += change / 12
        now = 0.5 * rate * (1 + math.cos(math.pi * (step - 1) / epochs))
        slow = slow * (1 - now * 0.01)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        size = (second / (1 - 0.999**step)).sqrt() + 1e-4
        slow = slow - now * (first / (1 - 0.9**step)) / size
        if step in stops:
            np.testing.assert_allclose(found[stops.index(step)], slow, atol=1e-9)


def test_training_the_keys_helps_left_out_images_where_the_cache_is_poor(task):
    features, labels, zero_shot = task(80, columns=8, text=0.5)
    plain = fit_tip_adapter(features, labels, 4, zero_shot=zero_shot)
    trained = fit_tip_adapter_f(features, labels, 4, zero_shot=zero_shot, rate=0.02)
    assert not torch.equal(trained.scorer.keys, plain.scorer.keys)
    assert trained.left_out.how == "fold"
    assert trained.left_out.log_loss < plain.left_out.log_loss
    assert trained.chosen["epoch"] in (1, 2, 5, 10, 20)
    assert trained.logits(features, zero_shot).shape == (80, 4)


@pytest.mark.parametrize("fit", [fit_tip_adapter, fit_tip_adapter_f])
def test_one_image_per_class_and_no_text(task, fit):
    features, labels, _ = task(4)
    found = fit(features, labels, 4)
    assert found.left_out.how == "none"
    assert (found.logits(features).argmax(1) == labels).all()
