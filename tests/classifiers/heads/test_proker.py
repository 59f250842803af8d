import math

import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.proker import fit_proker


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def slow_kernel(first, second, sharpness):
    found = torch.zeros(len(first), len(second), dtype=torch.float64)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            found[i, j] = math.exp(-sharpness * float((one - other).square().sum()))
    return found


def slow_proker(rows, labels, text, new, new_text, sharpness, strength):
    """f(x) + k(x, S) (K + λ I)⁻¹ (Y − f(S)), entry by entry."""
    # text comes calibrated, as the fit has it
    residual = torch.nn.functional.one_hot(labels, 4).double() - text.softmax(1)
    kernel = slow_kernel(rows, rows, sharpness)
    inverse = (kernel + strength * torch.eye(len(rows)).double()).inverse()
    return new_text.softmax(1) + slow_kernel(new, rows, sharpness) @ inverse @ residual


def text_weight_is_best(weight, zero_shot, labels):
    def loss(a):
        return float(torch.nn.functional.cross_entropy(a * zero_shot, labels))

    # with an image's worth of uniform labels the best is a little smaller
    best = min(np.linspace(0, 3, 3001), key=loss)
    return 0.5 * best < weight <= best + 1e-3


@pytest.mark.parametrize("count", [16, 128])
def test_it_is_the_closed_form_with_and_without_an_image(task, count):
    features, labels, zero_shot = task(count, columns=6)
    fit = fit_proker(features, labels, 4, zero_shot=zero_shot)
    numbers = (fit.chosen["sharpness"], fit.chosen["strength"])
    rows, text = unit(features), fit.scorer.text_weight * zero_shot
    assert text_weight_is_best(fit.scorer.text_weight, zero_shot, labels)
    expected = slow_proker(rows, labels, text, rows[:3], text[:3], *numbers)
    np.testing.assert_allclose(fit.scorer.logits(features[:3], zero_shot[:3]), expected, atol=1e-8)
    assert fit.left_out.how == ("block" if count == 16 else "one")
    for row in (5, 11):
        out = {r for r in range(count) if r // 4 == row // 4} if count == 16 else {row}
        kept = [r for r in range(count) if r not in out]
        alone = slice(row, row + 1)
        expected = slow_proker(
            rows[kept], labels[kept], text[kept], rows[alone], text[alone], *numbers
        )
        got = fit.left_out.logits[alone] / fit.temperature
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_its_numbers_have_the_least_left_out_loss(task):
    features, labels, text = task(40, columns=6, spread=0.6)
    fit = fit_proker(features, labels, 4, zero_shot=text)
    rows, blocks = unit(features), torch.arange(40) // 4
    text = fit.scorer.text_weight * text
    losses = {}
    for sharpness in (0.3, 10.0):
        for strength in (1e-3, 1.0):
            scores = torch.zeros(40, 4, dtype=torch.float64)
            for block in blocks.unique():
                out = blocks == block
                kept = ~out
                scores[out] = slow_proker(
                    rows[kept], labels[kept], text[kept], rows[out], text[out], sharpness, strength
                )
            losses[sharpness, strength] = min(
                float(torch.nn.functional.cross_entropy(scores * t, labels))
                for t in np.geomspace(0.5, 50, 60)
            )
    assert fit.left_out.log_loss <= min(losses.values()) + 2e-3


def test_no_text_and_one_image_per_class(task):
    features, labels, _ = task(4)
    fit = fit_proker(features, labels, 4)
    assert fit.left_out.how == "none"
    assert (fit.logits(features).argmax(1) == labels).all()
    # what it says of training images is the whole fit's own
    got = fit.left_out.logits / fit.temperature
    np.testing.assert_allclose(got, fit.scorer.logits(features), atol=1e-8)
