"""Ridge in closed form against fitting again without each image, and against scikit-learn."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from torch import Tensor

from residual_peft.classifiers.heads import RidgeFit, fit_ridge
from residual_peft.classifiers.heads.images import balanced_weights
from residual_peft.classifiers.heads.left_out import leaving_of
from residual_peft.data.labels import MANY_LABELS
from tests.pairs import table

CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}


def refitted(
    fit: RidgeFit,
    data: Any,
    labels: Tensor,
    targets: Tensor,
    weights: Tensor,
    twin: Any,
    **how: Any,
) -> Tensor:
    """Scores of each image by a fit without its part, on the same scales: as many fits as parts."""
    leaving = leaving_of(labels, data.class_count, **how)
    scores = torch.zeros_like(targets)
    for part in leaving.parts:
        inside = torch.ones(len(labels), dtype=torch.bool)
        inside[part] = False
        again = twin(
            data.features[inside],
            targets[inside],
            weights[inside],
            fit.head.mean,
            fit.head.scale,
            fit.alpha,
        )
        scores[part] = again(data.features[part])
    return scores


@table(
    ("columns", "how", "balanced", "power", "residual"),
    [
        (5, "one", False, 0.5, True),
        (60, "one", True, 1.0, False),
        (5, "block", True, 0.0, False),
        (60, "block", False, 0.5, True),
        (60, "group", True, 0.5, None),
        (5, "group", False, 1.0, True),
        (5, "wide group", True, 0.5, True),  # of more images than columns
        (5, "wide group", False, 1.0, False),
    ],
)
def test_left_out_predictions_are_those_of_as_many_fits(
    drawn: Any, ridge_twin: Any, columns: int, how: str, balanced: bool, power: float, residual: Any
) -> None:
    data = drawn((9, 4, 12), columns)
    groups = torch.arange(25) // (10 if how == "wide group" else 3) if "group" in how else None
    weights = balanced_weights(data.labels, 3) if balanced else None
    leave = None if groups is not None else how
    fit = fit_ridge(
        data.features,
        data.labels,
        3,
        zero_shot=data.zero_shot,
        power=power,
        groups=groups,
        class_weights=weights,
        leave=leave,
        residual=residual,
    )
    each = torch.ones(25).double() if weights is None else weights[data.labels]
    each = each / each.mean()
    targets = torch.eye(3).double()[data.labels]
    assert residual is None or (fit.prior > 0) == residual
    if fit.prior:
        targets = targets - (fit.prior * data.zero_shot).softmax(1)
    twin = refitted(fit, data, data.labels, targets, each, ridge_twin, groups=groups, how=leave)
    expected = fit.head.text_weight * data.zero_shot + fit.head.temperature * twin
    assert fit.left_out.how == how.removeprefix("wide ")
    torch.testing.assert_close(fit.left_out.logits, expected, **CLOSE)


@pytest.mark.parametrize(("columns", "balanced"), [(5, True), (60, False)])
def test_the_head_is_ridge_by_its_normal_equations(
    drawn: Any, ridge_twin: Any, columns: int, balanced: bool
) -> None:
    data, new = drawn((9, 4, 12), columns), drawn((4, 4, 4), columns, seed=1)
    weights = balanced_weights(data.labels, 3) if balanced else torch.ones(3).double()
    fit = fit_ridge(data.features, data.labels, 3, class_weights=weights)
    each = weights[data.labels] / weights[data.labels].mean()
    mean = (each.unsqueeze(1) * data.features).sum(0) / each.sum()
    variance = (each.unsqueeze(1) * (data.features - mean).square()).sum(0) / each.sum()
    targets = torch.eye(3).double()[data.labels]
    twin = ridge_twin(data.features, targets, each, mean, variance**0.25, fit.alpha)
    torch.testing.assert_close(fit.head.scores(new.features), twin(new.features), **CLOSE)
    torch.testing.assert_close(
        fit.logits(new.features), fit.head.temperature * twin(new.features), **CLOSE
    )


@table("columns", [5, 60])
@table("several", [False, True])
def test_primal_and_dual_are_one(drawn: Any, columns: int, several: bool) -> None:
    data = drawn((9, 4, 12), columns)
    labels = (data.zero_shot > 0.5).long() if several else data.labels
    both = [
        fit_ridge(data.features, labels, 3, zero_shot=data.zero_shot, primal=primal)
        for primal in (True, False)
    ]
    torch.testing.assert_close(both[0].alpha, both[1].alpha)
    torch.testing.assert_close(both[0].head.weights, both[1].head.weights, **CLOSE)
    torch.testing.assert_close(both[0].left_out.logits, both[1].left_out.logits, **CLOSE)


@pytest.mark.parametrize(("columns", "balanced"), [(8, False), (60, True), (60, False)])
def test_scikit_learn_chooses_and_predicts_the_same(
    drawn: Any, columns: int, balanced: bool
) -> None:
    data, new = drawn((9, 7, 12), columns), drawn((20, 20, 20), columns, seed=1)
    mean, scale = data.features.mean(0), data.features.std(0, correction=0)
    weights = balanced_weights(data.labels, 3) if balanced else torch.ones(3).double()
    alphas = [0.1, 1.0, 10.0, 100.0]
    own = fit_ridge(
        data.features,
        data.labels,
        3,
        alphas=alphas,
        class_weights=weights,
        scale=scale,
        leave="one",
    )
    each = weights[data.labels] / weights[data.labels].mean()
    theirs = RidgeClassifierCV(alphas).fit((data.features - mean) / scale, data.labels, each)
    assert float(own.alpha[0]) == theirs.alpha_
    decision = torch.from_numpy(theirs.decision_function((new.features - mean) / scale))
    torch.testing.assert_close(2 * own.head.scores(new.features) - 1, decision, **CLOSE)


def test_a_text_that_is_worth_something_is_corrected_rather_than_replaced() -> None:
    """Features that say where the text errs on class 2, and nothing else."""
    generator, parts = torch.Generator().manual_seed(0), []
    for count in (60, 600):
        given = torch.arange(count) % 3
        errs = torch.rand(count, generator=generator) < 0.3  # and then it says the next class
        said = 4 * torch.eye(3).double()[(given + errs) % 3]
        values = torch.randn(count, 30, generator=generator).double()
        values[:, 0] += 4 * (errs & (given == 2))
        parts.append((values, given, said))
    (features, labels, text), (fresh, wanted, said) = parts
    fits = [fit_ridge(features, labels, 3, zero_shot=text, residual=r) for r in (None, True, False)]
    assert [fit.prior > 0 for fit in fits] == [True, True, False]
    right = [float((f.logits(fresh, said).argmax(1) == wanted).double().mean()) for f in fits]
    assert right[0] == right[1] > right[2]
    misled = fit_ridge(features, labels, 3, zero_shot=-text, residual=True)
    assert misled.prior == 0  # there is nothing to correct


def test_how_sure_a_ridge_of_one_image_per_class_is(drawn: Any) -> None:
    data = drawn((1, 1, 1), 6)
    text = 3 * torch.eye(3).double()[data.labels]  # a text that is right
    for residual, sure in ((None, 8.0), (False, 12.0)):
        fit = fit_ridge(data.features, data.labels, 3, zero_shot=text, residual=residual)
        assert (fit.left_out.how, fit.head.temperature) == ("none", sure)
        assert (fit.prior > 0) is (residual is None)
        assert fit.head.text_weight > 0  # by itself, as it has seen no image


def test_folds_beside_what_is_left_out_are_those_of_a_fit_with_them_alone(drawn: Any) -> None:
    data, folds = drawn((9, 7, 12), 20), torch.arange(28) % 4
    options = {"zero_shot": data.zero_shot}
    both = fit_ridge(data.features, data.labels, 3, folds=folds, **options)
    alone = fit_ridge(data.features, data.labels, 3, groups=folds, **options)
    assert both.left_out.how == "block"
    assert both.by_folds is not None
    torch.testing.assert_close(both.by_folds.logits, alone.left_out.logits, **CLOSE)


def test_a_weight_of_two_is_the_image_twice(drawn: Any) -> None:
    data = drawn((6, 6), 9)
    weights, twice = torch.tensor([1.0, 2.0]), 1 + data.labels
    features = data.features.repeat_interleave(twice, 0)
    labels = data.labels.repeat_interleave(twice)
    copies = fit_ridge(features, labels, 2, alphas=[3.0], leave="none")
    weighted = fit_ridge(
        data.features,
        data.labels,
        2,
        alphas=[3.0 * 12 / 18],  # weights are of mean 1
        class_weights=weights,
        leave="none",
    )
    # nothing is left out to choose by: of more strengths it is the nearest to the usual one
    assert fit_ridge(features, labels, 2, alphas=[1e9, 3.0, 1e-9], leave="none").alpha[0] == 3
    torch.testing.assert_close(weighted.head.scale, copies.head.scale, **CLOSE)
    torch.testing.assert_close(weighted.head.weights, copies.head.weights, **CLOSE)
    torch.testing.assert_close(weighted.head.offset, copies.head.offset, **CLOSE)


def test_each_of_several_labels_is_its_own_ridge(drawn: Any, ridge_twin: Any) -> None:
    data = drawn((14, 14, 14), 12)
    third = data.features[:, 3] > data.features[:, 3].median()
    labels = torch.stack([data.labels == 0, data.labels < 2, third], 1).double()
    fit = fit_ridge(data.features, labels, 3)
    for c in range(3):
        one = fit_ridge(data.features, labels[:, c : c + 1], 1)
        assert float(fit.alpha[c]) == pytest.approx(float(one.alpha[0]))
        torch.testing.assert_close(fit.left_out.logits[:, c], one.left_out.logits[:, 0], **CLOSE)
    ones = torch.ones(42).double()
    scores = refitted(fit, data, labels, labels, ones, ridge_twin)
    # a line per class, up in the scores
    for c in range(3):
        x = torch.stack([scores[:, c], ones], 1)
        line = torch.linalg.lstsq(x, fit.left_out.logits[:, c : c + 1]).solution
        torch.testing.assert_close(x @ line, fit.left_out.logits[:, c : c + 1], **CLOSE)
        assert float(line[0]) > 0


def test_the_text_helps_several_labels_without_a_bias_of_its_own(drawn: Any) -> None:
    data, new = drawn((14, 14, 14), 12, text=4.0), drawn((30, 30, 30), 12, seed=5, text=4.0)
    labels, wanted = (torch.eye(3)[d.labels] for d in (data, new))
    noise = torch.randn(42, 12, generator=torch.Generator().manual_seed(0))
    fit = fit_ridge(noise, labels, 3, zero_shot=data.zero_shot - 30)
    logits = fit.head.logits(torch.zeros(90, 12), new.zero_shot - 30)
    assert ((logits > 0) == (wanted > 0)).double().mean() > 0.9
    assert fit.left_out.accuracy > 0.9
    # the left-out logits' own offset is the head's
    expected = fit.head.logits(noise.double(), data.zero_shot - 30)
    assert (expected.mean(0) - fit.left_out.logits.mean(0)).abs().max() < 0.5


def test_thresholds_are_those_of_the_best_f1_of_which_half_is_right(drawn: Any) -> None:
    data = drawn((14, 14, 14), 12, apart=0.3)
    random = torch.zeros(42, dtype=torch.float64)
    random[torch.randperm(42, generator=torch.Generator().manual_seed(0))[:3]] = 1
    labels = torch.stack([data.labels == 0, data.labels < 2, random, 0 * random], 1).double()
    left = fit_ridge(data.features, labels[:, :3], 3).left_out
    logits = torch.cat([left.logits, left.logits[:, :1]], 1)
    thresholds = MANY_LABELS.thresholds(logits, labels)

    def told(threshold: float, c: int) -> tuple[float, float]:
        said = logits[:, c] > threshold
        hits = float((said & (labels[:, c] > 0)).sum())
        right = hits / max(1.0, float(said.sum()))
        return 2 * hits / max(1.0, float(said.sum() + labels[:, c].sum())), right

    for c in range(3):
        places = [told(value - 1e-9, c) for value in logits[:, c].tolist()]
        best = max((f1 for f1, right in places if right >= 0.5), default=0.0)
        found = float(thresholds[c])
        assert found == 0 or told(found, c)[0] == pytest.approx(best)
        assert (found == 0) == (best == 0)
    assert int((logits[:, 2] > thresholds[2]).sum()) <= 6  # of a class that nothing tells
    assert float(thresholds[3]) == 0  # of one that no image has
