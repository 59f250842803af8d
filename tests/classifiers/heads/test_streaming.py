"""Ridge from sums against ridge from rows; generalised cross-validation; the second pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.heads import (
    HeadStatistics,
    calibrated,
    fit_ridge,
    fit_statistics,
    left_out_errors,
)
from residual_peft.classifiers.heads.images import balanced_weights
from residual_peft.errors import ResiDualError
from tests.pairs import table

CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}


def summed(
    features: Tensor, labels: Tensor, class_count: int, weights: Tensor | None = None
) -> HeadStatistics:
    statistics = HeadStatistics(features.shape[1], class_count)
    for part in torch.arange(len(labels)).split(7):
        each = None if weights is None else weights[part]
        statistics.add(features[part], labels[part], each)
    return statistics


@table(
    ("columns", "balanced", "several", "power"),
    [(6, False, False, 0.5), (40, True, False, 1.0), (6, False, True, 0.0), (6, True, False, 0.5)],
)
def test_a_fit_from_sums_is_that_from_rows(
    drawn: Any, columns: int, balanced: bool, several: bool, power: float
) -> None:
    data = drawn((8, 12, 14), columns)
    labels = torch.eye(3)[data.labels] if several else data.labels
    weights = balanced_weights(data.labels, 3) if balanced else None
    rows = fit_ridge(data.features, labels, 3, power=power, class_weights=weights, alphas=[2.5])
    each = None if weights is None else weights[data.labels]
    statistics = summed(data.features, labels, 3, each)
    sums = fit_statistics(statistics, power=power, alpha=2.5, multi_label=several)
    torch.testing.assert_close(sums.head.mean, rows.head.mean, **CLOSE)
    torch.testing.assert_close(sums.head.scale, rows.head.scale, **CLOSE)
    if not several:  # whose offsets and slopes are calibrated on rows
        torch.testing.assert_close(sums.head.weights, rows.head.weights, **CLOSE)
        torch.testing.assert_close(sums.head.offset, rows.head.offset, **CLOSE)
    else:
        slopes = rows.head.weights / sums.head.weights
        torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes), **CLOSE)


def test_updates_are_a_fit_from_scratch_on_the_same_scales(drawn: Any) -> None:
    data = drawn((8, 12, 14, 9), 20)
    first = data.labels < 3
    fit = fit_ridge(data.features[first], data.labels[first], 3)
    statistics = summed(data.features[first], data.labels[first], 3)
    statistics.add_class()
    statistics.add(data.features[~first], data.labels[~first])
    some = data.labels == 0
    statistics.forget(data.features[some][:2], data.labels[some][:2])
    alpha = float(fit.alpha[0])
    updated = fit_statistics(statistics, alpha=alpha, scale=fit.head.scale).head
    kept = torch.ones(43, dtype=torch.bool)
    kept[some.nonzero().flatten()[:2]] = False
    scratch = fit_ridge(
        data.features[kept], data.labels[kept], 4, alphas=[alpha], scale=fit.head.scale
    ).head
    for name in ("mean", "scale", "weights", "offset"):
        torch.testing.assert_close(getattr(updated, name), getattr(scratch, name), **CLOSE)


@table("columns", [6, 60])
@table("several", [False, True])
def test_generalised_cross_validation_by_the_hat_matrix(
    drawn: Any, columns: int, several: bool
) -> None:
    data = drawn((8, 12, 14), columns)
    targets = torch.eye(3).double()[data.labels]
    labels = targets if several else data.labels
    fit = fit_statistics(summed(data.features, labels, 3), multi_label=several)
    x = (data.features - fit.head.mean) / fit.head.scale
    expected = []
    for alpha in fit.alphas.tolist():
        inverse = torch.linalg.inv(x.mT @ x + alpha * torch.eye(columns).double())
        hat = x @ inverse @ x.mT + 1 / 34
        residual = (targets - hat @ targets).square().sum(0)
        expected.append(residual / 34 / (1 - hat.trace() / 34) ** 2)
    torch.testing.assert_close(fit.errors, torch.stack(expected), rtol=1e-6, atol=1e-9)
    if several:
        assert torch.equal(fit.alpha, fit.alphas[fit.errors.argmin(0)])
    else:
        assert torch.equal(fit.alpha, fit.alphas[fit.errors.sum(1).argmin()].expand(3))


@pytest.mark.parametrize("columns", [6, 60])
def test_the_second_pass_leaves_out_as_rows_do(drawn: Any, columns: int) -> None:
    data = drawn((8, 12, 14), columns)
    batches = [
        (data.features[part], data.labels[part], data.zero_shot[part])
        for part in torch.arange(34).split(9)
    ]
    fit = fit_statistics(summed(data.features, data.labels, 3))
    errors = left_out_errors(fit, iter(batches))
    rows = fit_ridge(
        data.features,
        data.labels,
        3,
        zero_shot=data.zero_shot,
        alphas=fit.alphas,
        leave="one",
    )
    torch.testing.assert_close(errors.sum(1), rows.losses, **CLOSE)
    best = fit_statistics(
        summed(data.features, data.labels, 3), alpha=float(fit.alphas[errors.sum(1).argmin()])
    )
    head, left_out = calibrated(best, iter(batches))
    assert float(best.alpha[0]) == float(rows.alpha[0])
    torch.testing.assert_close(left_out.logits, rows.left_out.logits, rtol=1e-6, atol=1e-6)
    assert torch.equal(left_out.known, rows.left_out.known)
    assert head.temperature == pytest.approx(rows.head.temperature, rel=1e-6)
    assert head.text_weight == pytest.approx(rows.head.text_weight, rel=1e-5)
    torch.testing.assert_close(
        head.logits(data.features, data.zero_shot),
        rows.head.logits(data.features, data.zero_shot),
        rtol=1e-5,
        atol=1e-5,
    )


def test_what_a_second_pass_cannot_do(drawn: Any) -> None:
    data = drawn((8, 12, 14), 6)
    fit = fit_statistics(summed(data.features, data.labels, 3))
    x, labels, text = data.features, data.labels, data.zero_shot
    with pytest.raises(ResiDualError, match="got 0 batches of which 0"):
        calibrated(fit, [])
    with pytest.raises(ResiDualError, match="got 2 batches of which 1 have them"):
        calibrated(fit, [(x, labels, text), (x, labels)])
    with pytest.raises(ResiDualError, match="one label per image to calibrate on"):
        calibrated(fit, [(x, torch.ones(34, 3))])
    # one image of each class: nobody is known without it, as in a fit on rows
    few = torch.tensor([int((labels == k).nonzero()[0]) for k in range(3)])
    single = fit_statistics(summed(x[few], labels[few], 3))
    head, left_out = calibrated(single, [(x[few], labels[few], text[few])])
    rows = fit_ridge(x[few], labels[few], 3, zero_shot=text[few], residual=False)
    assert not left_out.known.any()
    assert head.temperature == rows.head.temperature
    assert head.text_weight == pytest.approx(rows.head.text_weight)
    weighted = fit_statistics(summed(x, labels, 3, 1 + labels.double()))
    with pytest.raises(ResiDualError, match="images of weight 1 to say what a fit without"):
        left_out_errors(weighted, [(x, labels)])


def test_what_cannot_be_fitted_from_sums(drawn: Any) -> None:
    data = drawn((8, 12, 14), 6)
    statistics = summed(data.features, data.labels, 5)
    with pytest.raises(ResiDualError, match=r"each of 5 classes, .* 34 and none of class 3, 4"):
        fit_statistics(statistics)
    full = summed(data.features, data.labels, 3)
    for options in ({"alpha": 0.0}, {"alphas": []}):
        with pytest.raises(ResiDualError, match="wanted strengths above 0 to try"):
            fit_statistics(full, **options)  # type: ignore[arg-type]
