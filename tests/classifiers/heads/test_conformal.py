import math

import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.conformal import (
    RidgeWithout,
    coverage_interval,
    jackknife_sets,
    split_sets,
    upper_quantile,
)
from residual_peft.classifiers.heads.left_out import LeftOut, leaving_of
from residual_peft.classifiers.heads.ridge import fit_ridge
from residual_peft.errors import ResiDualError
from tests.pairs import table


def some_logits(count, classes=6, seed=0, right=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    logits[torch.arange(count), labels] += right
    return logits, labels


@table(("count", "coverage"), [(9, 0.9), (8, 0.9), (50, 0.8), (19, 0.95)])
def test_the_quantile_is_the_smallest_that_covers(count, coverage):
    scores = torch.randn(count, generator=torch.Generator().manual_seed(1)).double()
    found = upper_quantile(scores, coverage)
    enough = [s for s in scores.tolist() if int((scores <= s).sum()) / (count + 1) >= coverage]
    assert found == (min(enough) if enough else math.inf)


def test_sets_hold_the_classes_of_at_most_the_threshold():
    logits, labels = some_logits(100)
    sets = split_sets(logits, labels, 0.8)
    new, _ = some_logits(30, seed=1)
    found = sets.sets(new)
    for row in range(30):
        for k in range(6):
            score = -float(new[row].log_softmax(0)[k])
            assert bool(found[row, k]) == (score <= float(sets.threshold[0]))
    assert sets.promise == "split"
    assert sets.guaranteed == 0.8
    assert (sets.sets(new, empty=False).sum(1) >= 1).all()
    assert (sets.sets(new, empty=False) >= found).all()


def test_split_coverage_over_draws_is_the_beta_binomials():
    covered = []
    for draw in range(60):
        logits, labels = some_logits(250, seed=draw)
        sets = split_sets(logits[:50], labels[:50], 0.9)
        found = sets.sets(logits[50:])
        covered.append(found[torch.arange(200), labels[50:]].double().mean())
    low, high = coverage_interval(50, 200, 0.9, draws=60)
    assert low <= float(torch.stack(covered).mean()) <= high
    assert high - low < 0.03
    # and one draw varies as it says
    low, high = coverage_interval(50, 200, 0.9)
    inside = [low <= float(share) <= high for share in covered]
    assert np.mean(inside) > 0.85


def test_the_interval_is_that_of_drawn_beta_binomials():
    generator = np.random.default_rng(0)
    shares = generator.beta(28, 3, size=(20000, 4))
    pooled = generator.binomial(40, shares).sum(1) / 160
    low, high = coverage_interval(30, 40, 0.9, draws=4)
    assert low == pytest.approx(np.quantile(pooled, 0.025), abs=0.011)
    assert high == pytest.approx(np.quantile(pooled, 0.975), abs=0.011)
    assert coverage_interval(5, 40, 0.9) == (1.0, 1.0)


def test_thresholds_per_class_need_images_of_it():
    logits, labels = some_logits(120)
    labels[labels == 5] = 4
    labels[:8] = 5
    sets = split_sets(logits, labels, 0.9, per_class=True)
    assert math.isinf(float(sets.threshold[5]))
    own = -logits[labels == 2].log_softmax(1)[:, 2]
    assert float(sets.threshold[2]) == upper_quantile(own, 0.9)
    assert sets.sets(logits)[:, 5].all()


@pytest.mark.parametrize(("sizes", "columns"), [((3, 4, 3), 20), ((33, 35, 34), 5)])
def test_fits_without_a_part_are_those_of_fits_anew(drawn, ridge_twin, sizes, columns):
    draw = drawn(sizes, columns)
    fit = fit_ridge(draw.features, draw.labels, 3, zero_shot=draw.zero_shot)
    leaving = leaving_of(draw.labels, 3)
    new = drawn((4, 4, 4), columns, seed=5)
    ones = torch.ones(len(draw.labels), dtype=torch.float64)
    without = RidgeWithout.of(
        fit.head, float(fit.alpha[0]), fit.left_out, leaving, draw.features, ones, draw.zero_shot
    )
    targets = torch.eye(3, dtype=torch.float64)[draw.labels]
    for number, (part, logits) in enumerate(without.logits(new.features, new.zero_shot)):
        if number % 9:
            continue
        kept = torch.ones(len(draw.labels), dtype=torch.bool)
        kept[part] = False
        scores = ridge_twin(
            draw.features[kept], targets[kept], ones[kept], fit.head.mean, fit.head.scale, fit.alpha
        )
        expected = fit.head.temperature * scores(new.features)
        expected = expected + fit.head.text_weight * new.zero_shot
        np.testing.assert_allclose(logits, expected, rtol=1e-7, atol=1e-8)


def test_jackknife_plus_sets_equal_a_loop(drawn):
    draw, new = drawn((5, 5, 6), 12), drawn((3, 3, 3), 12, seed=2)
    fit = fit_ridge(draw.features, draw.labels, 3)
    leaving = leaving_of(draw.labels, 3)
    ones = torch.ones(16, dtype=torch.float64)
    without = RidgeWithout.of(
        fit.head, float(fit.alpha[0]), fit.left_out, leaving, draw.features, ones
    )
    found = without.sets(new.features, coverage=0.8)
    own = -fit.left_out.logits.log_softmax(1)
    above = np.zeros((9, 3))
    for part, logits in without.logits(new.features):
        for row in part.tolist():
            for image in range(9):
                for k in range(3):
                    score = -logits[image].log_softmax(0)[k]
                    above[image, k] += float(own[row, draw.labels[row]]) < float(score)
    np.testing.assert_array_equal(found, above < 0.8 * 17)


def test_left_out_sets_of_handwriting_cover_as_asked(digits):
    features, labels = digits
    covered, plus, count = [], [], 20
    for seed in range(4):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        train = torch.cat([order[labels[order] == digit][:count] for digit in range(10)])
        test = order[~torch.isin(order, train)][:400]
        fit = fit_ridge(features[train], labels[train], 10)
        sets = jackknife_sets(fit.left_out, 0.9).sets(fit.head.logits(features[test]))
        covered.append(sets[torch.arange(400), labels[test]].double().mean())
        leaving = leaving_of(labels[train], 10)
        ones = torch.ones(len(train), dtype=torch.float64)
        without = RidgeWithout.of(
            fit.head, float(fit.alpha[0]), fit.left_out, leaving, features[train], ones
        )
        sets = without.sets(features[test], coverage=0.9)
        plus.append(sets[torch.arange(400), labels[test]].double().mean())
    for shares in (covered, plus):
        assert 0.87 < float(torch.stack(shares).mean()) < 0.95


def test_what_cannot_be_covered_is_one_line():
    logits, labels = some_logits(20)
    known = torch.zeros(20, dtype=torch.bool)
    with pytest.raises(ResiDualError, match="wanted predictions of left-out images"):
        jackknife_sets(LeftOut(logits, labels, "none", known))
    with pytest.raises(ResiDualError, match=r"wanted a coverage between 0 and 1, got 1\.5"):
        split_sets(logits, labels, 1.5)
    with pytest.raises(ResiDualError, match="wanted one label per image, got several"):
        split_sets(logits, torch.ones(20, 6))
    with pytest.raises(ResiDualError, match="wanted at least one image to make prediction sets"):
        split_sets(logits[:0], labels[:0])
