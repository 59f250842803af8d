import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.heads_coverage import coverage_interval
from residual_peft.classifiers.heads.conformal import (
    MOST_SCORES,
    PredictionSets,
    fewest,
    kept_scores,
    scores_of,
    upper_quantile,
)
from residual_peft.classifiers.heads.jackknife_plus import PlusSets, RidgeWithout
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
    sets = PredictionSets(kept_scores(logits, labels), 0.8, "held-out")
    new, _ = some_logits(30, seed=1)
    found = sets.sets(new)
    for row in range(30):
        for k in range(6):
            score = -float(new[row].log_softmax(0)[k])
            assert bool(found[row, k]) == (score <= sets.threshold)
    # an image just like the one that the threshold is of has its class in its set
    for coverage in (0.5, 0.55, 0.6, 0.65, 0.7, 0.9):
        own = PredictionSets(kept_scores(logits, labels), coverage, "held-out").sets(logits)
        assert int(own[torch.arange(100), labels].sum()) == math.ceil(101 * coverage)
    assert sets.told == "by 100 held-out images: at least 80 % on average"
    assert "at least" not in replace(sets, grouped=True).told


def test_split_coverage_over_draws_is_the_beta_binomials():
    covered = []
    for draw in range(60):
        logits, labels = some_logits(250, seed=draw)
        sets = PredictionSets(kept_scores(logits[:50], labels[:50]), 0.9, "held-out")
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


def test_left_out_sets_of_handwriting_cover_as_asked(digits):
    features, labels = digits
    covered, plus, count = [], [], 20
    for seed in range(4):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        train = torch.cat([order[labels[order] == digit][:count] for digit in range(10)])
        test = order[~torch.isin(order, train)][:400]
        fit = fit_ridge(features[train], labels[train], 10)
        sets = PredictionSets(scores_of(fit.left_out), 0.9, "jackknife")
        found = sets.sets(fit.head.logits(features[test]))
        covered.append(found[torch.arange(400), labels[test]].double().mean())
        without = RidgeWithout.of(fit, features[train], labels[train], 10)
        found = PlusSets.of(without, 0.9).sets(features[test])
        plus.append(found[torch.arange(400), labels[test]].double().mean())
    for shares in (covered, plus):
        assert 0.87 < float(torch.stack(shares).mean()) < 0.95


def test_of_many_scores_quantiles_are_kept_and_sets_no_smaller():
    logits, labels = some_logits(3 * MOST_SCORES + 7)
    kept = kept_scores(logits, labels)
    whole = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    assert len(kept) == MOST_SCORES
    for coverage in (0.5, 0.9, 0.999):
        threshold = PredictionSets(kept, coverage, "held-out").threshold
        share = float((whole <= threshold).double().mean())  # kept in float32, rounded up
        assert coverage <= share < coverage + 3e-4


def test_what_cannot_be_covered_is_one_line():
    logits, labels = some_logits(20)
    scores = kept_scores(logits, labels)
    for wrong in (1.5, 0.0, 1.0, math.nan):
        with pytest.raises(ResiDualError, match="wanted a coverage between 0 and 1, got"):
            PredictionSets(scores, wrong, "held-out")
    few = "wanted 99 images or more for sets .* 99 times of 100, got 20 held-out images"
    with pytest.raises(ResiDualError, match=few):
        PredictionSets(scores, 0.99, "held-out")
    assert kept_scores(logits, torch.ones(20, 6)) is None
    assert kept_scores(logits[:0], labels[:0]) is None


@table("coverage", (0.01, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999))
def test_fewer_images_than_asked_for_give_no_threshold(coverage):
    least = fewest(coverage)
    scores = torch.arange(1.0, least + 1).double()
    assert math.isfinite(upper_quantile(scores, coverage))
    assert least == 1 or math.isinf(upper_quantile(scores[1:], coverage))
