"""Rankings, curves and overlaps against loops in float64, and on heads that are known to carry."""

import json
from statistics import stdev

import numpy as np
import pytest
import torch

from residual_peft import ResiDualError
from residual_peft.analysis.coarse import coarse_optimum
from residual_peft.analysis.curves import DEFAULT_BUDGETS, selection_curve
from residual_peft.analysis.rankings import overlap, random_rankings, rank_units, unit_count
from residual_peft.analysis.selection import compare_selections
from residual_peft.data.metrics import accuracy_interval, difference_interval
from residual_peft.towers.units import Unit
from tests.analysis.selection_case import Case, case, classes, naive_right, planted
from tests.pairs import table

BUDGETS = (1, 0.1, 0.5, 24)


@table("block", [None, 11])
@table("ablation", ["zero", "mean"])
def test_supervised_is_the_accuracy_of_each_head_alone(ablation: str, block: int | None) -> None:
    one = case()
    ranking = rank_units(one.seen, classes(), ablation=ablation, block=block)
    heads = one.index()
    alone = {
        one.units[i]: sum(
            naive_right(one, {i}, heads, ablation=ablation, others="ablate", reference=one)
        )
        / 60
        for i in heads
    }
    assert ranking.scores is not None
    assert dict(zip(ranking.units, ranking.scores, strict=True)) == alone
    # equal ones in the order of the tower: Python's sort is stable
    assert list(ranking.units) == sorted(alone, key=lambda unit: -alone[unit])
    assert len(set(alone.values())) > 3


def slow_correlation(one: Case, unit: int, axes: np.ndarray) -> float:
    """Mean Pearson correlation over the rows of `axes`, one axis at a time."""
    written, readout = one.written[:, unit].numpy(), one.readout.numpy()
    return float(np.mean([np.corrcoef(written @ e, readout @ e)[0, 1] for e in axes]))


@pytest.mark.parametrize("method", ["unsupervised", "unsupervised_given_task"])
def test_unsupervised_is_the_mean_correlation_over_a_basis(method: str) -> None:
    one = case()
    readout = one.readout.numpy()
    axes = np.linalg.svd(readout - readout.mean(0), full_matrices=False)[2]
    if method == "unsupervised_given_task":
        axes = np.linalg.qr(classes().double().numpy().T)[0].T
        assert axes.shape == (5, 20)
    ranking = rank_units(one.seen, classes(), method, units=("head", "mlp"))
    expected = {one.units[i]: slow_correlation(one, i, axes) for i in one.index(("head", "mlp"))}
    assert ranking.scores is not None
    measured = dict(zip(ranking.units, ranking.scores, strict=True))
    assert measured == {unit: pytest.approx(value, abs=1e-5) for unit, value in expected.items()}
    assert list(ranking.units) == sorted(expected, key=lambda unit: -expected[unit])
    some = rank_units(one.seen.rows(torch.arange(30)), classes(), method)
    assert some.scores != rank_units(one.seen, classes(), method).scores


def test_some_rows_are_centred_by_themselves() -> None:
    one, index = case(), torch.arange(10, 45)
    fewer = Case(
        one.seen.rows(index),
        one.units,
        one.written[index],
        one.bias,
        one.readout[index],
        one.labels[index],
    )
    axes = np.linalg.qr(classes().double().numpy().T)[0].T
    ranking = rank_units(fewer.seen, classes(), "unsupervised_given_task")
    expected = sorted((slow_correlation(fewer, i, axes) for i in one.index()), reverse=True)
    assert ranking.scores == pytest.approx(expected, abs=1e-5)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    one = planted({"layer0.head1": 1.0})
    dead = one.parts[0]
    object.__setattr__(dead, "coordinates", torch.zeros_like(dead.coordinates))
    for method in ("unsupervised", "unsupervised_given_task"):
        ranking = rank_units(one, classes(), method)
        assert ranking.scores is not None
        scores = dict(zip(map(str, ranking.units), ranking.scores, strict=True))
        assert scores["layer0.head0"] == 0.0
        assert np.isfinite(list(scores.values())).all()
    # a class told twice, and one that is the sum of two others, add no axis, wherever they stand
    plain = rank_units(one, classes(), "unsupervised_given_task")
    first, second, *rest = classes().split(1)
    for more in ([first, second, *rest, first, second + rest[0]], [first, first, second, *rest]):
        again = rank_units(one, torch.cat(more), "unsupervised_given_task")
        assert again.units == plain.units
        assert again.scores == pytest.approx(plain.scores, abs=1e-9)


def test_random_rankings_are_draws_that_a_seed_repeats() -> None:
    units = rank_units(case().seen, classes()).units
    draws = random_rankings(units, 10, seed=1)
    assert len({one.units for one in draws}) == 10
    assert all(set(one.units) == set(units) for one in draws)
    assert draws == random_rankings(units[::-1], 10, seed=1)
    assert draws != random_rankings(units, 10, seed=2)
    first = {one.units[0] for one in random_rankings(units, 400)}
    assert first == set(units)


@table("others", ["ablate", "keep"])
@table("ablation", ["zero", "mean"])
def test_curves_are_those_of_a_loop(ablation: str, others: str) -> None:
    validation, test = case(1, 41), case(0)
    heads = test.index()
    setting = {"ablation": ablation, "others": others}
    ranking = rank_units(validation.seen, classes())
    draws = random_rankings(ranking.units, 3)
    curve = selection_curve(
        ranking, test.seen, classes(), BUDGETS, reference=validation.seen, **setting
    )
    random = selection_curve(
        draws, test.seen, classes(), BUDGETS, reference=validation.seen, block=13, **setting
    )

    def slow(one: object, count: int) -> list[bool]:
        kept = {test.units.index(unit) for unit in one.units[:count]}
        return naive_right(test, kept, heads, reference=validation, **setting)

    for count, mine, theirs in zip((1, 2, 12, 24), curve.points, random.points, strict=True):
        right = slow(ranking, count)
        assert (mine.units, mine.accuracy, mine.spread) == (count, sum(right) / 60, None)
        assert (mine.low, mine.high) == accuracy_interval(sum(right), 60)
        each = [sum(slow(one, count)) / 60 for one in draws]
        assert theirs.accuracy == pytest.approx(sum(each) / 3)
        assert theirs.spread == pytest.approx(stdev(each))
        assert theirs.low <= theirs.accuracy <= theirs.high
    assert len({point.accuracy for point in curve.points}) > 1


def test_margins_are_of_the_same_images() -> None:
    validation, test = planted({"layer1.head3": 1.0}, 1), planted({"layer1.head3": 1.0}, 2)
    best = rank_units(validation, classes())
    worst = type(best)("unsupervised", best.units[::-1])
    one, other = (selection_curve(r, test, classes(), (1, 8, 16)) for r in (best, worst))
    margins = one.margin_over(other)
    for index, margin in enumerate(margins):
        expected = difference_interval(one.right[0, index], other.right[0, index])
        assert (margin.low, margin.high) == expected
        gap = one.points[index].accuracy - other.points[index].accuracy
        assert margin.difference == pytest.approx(gap)
    assert margins[0].low > 0.5
    assert margins[2].difference == 0  # all heads, in whatever order
    with pytest.raises(ResiDualError, match=r"same 400 images and budgets \[1, 8, 16\].*\[2\]"):
        one.margin_over(selection_curve(best, test, classes(), (2,)))


def test_the_interval_over_draws_is_as_wide_as_new_draws_and_images_differ() -> None:
    """Curves of new images and new draws: their means scatter as the interval says."""
    means, halves = [], []
    for seed in range(60):
        test = planted({"layer0.head1": 0.5, "layer1.head3": 0.3}, seed, count=60, heads=4)
        draws = random_rankings(test.units, 8, seed)
        point = selection_curve(draws, test, classes(), (3,)).points[0]
        means.append(point.accuracy)
        halves.append((point.high - point.low) / 2 / 1.96)
    # the two variances are added, which is a little too wide
    assert 0.95 < np.mean(halves) / stdev(means) < 1.5


def test_the_study_finds_the_heads_that_carry_a_task() -> None:
    carriers = {"layer0.head2": 0.7, "layer1.head3": 1.0}
    train, validation, test = (planted(carriers, seed) for seed in range(3))
    optimum = coarse_optimum(train, validation, classes())
    study = compare_selections(validation, test, classes(), optimum=optimum)
    for ranking in study.rankings:
        assert {str(unit) for unit in ranking.units[:2]} == set(carriers)
    two = DEFAULT_BUDGETS.index(0.1)
    for letter in ("S", "U", "U|T"):
        curve = study.curve(letter)
        assert curve.points[two].units == 2
        assert curve.points[two].accuracy > study.line("B").accuracy + 0.02
        assert curve.margin_over(study.curve("R"))[two].low > 0.2
    assert study.line("H").accuracy == pytest.approx(study.line("B").accuracy, abs=0.02)
    assert study.line("O").accuracy > study.line("H").accuracy + 0.02
    gains = {row["unit"]: row["gain"] for row in optimum.rows()}
    others = [abs(gain) for name, gain in gains.items() if name not in carriers]
    assert min(gains[name] for name in carriers) > 1.3 * max(others)
    rows = study.rows()
    assert len(rows) == 4 * len(DEFAULT_BUDGETS)
    assert ["margin" in row for row in rows] == [row["letter"] != "R" for row in rows]
    assert json.loads(json.dumps(study.as_dict()))["rankings"][0]["letter"] == "S"
    assert compare_selections(validation, test, classes(), optimum=optimum, block=7) == study
    for told in (study.curve("R").as_dict(), optimum.as_dict()):
        assert json.loads(json.dumps(told)) == told


def test_units_are_never_chosen_on_the_images_that_are_scored() -> None:
    validation, test = case(1, 41).seen, case(0).seen
    study = compare_selections(validation, test, classes(), ablation="mean", draws=2)
    shuffled = type(test)(test.units, test.parts, test.readout, test.labels.flip(0))
    other = compare_selections(validation, shuffled, classes(), ablation="mean", draws=2)
    assert other.rankings == study.rankings
    assert other.curves != study.curves


def test_overlaps_are_jaccards_and_chance_is_what_draws_share() -> None:
    units = [Unit("head", 0, head) for head in range(20)]
    found = overlap({"a": units[:4], "b": units[2:8], "c": units[10:14]}, total=20)
    assert found.names == ("a", "b", "c")
    assert found.values == ((1.0, 2 / 8, 0.0), (2 / 8, 1.0, 0.0), (0.0, 0.0, 1.0))
    generator, shared = np.random.default_rng(0), []
    for _ in range(4000):
        one, two = set(generator.permutation(20)[:4]), set(generator.permutation(20)[:6])
        shared.append(len(one & two) / len(one | two))
    assert found.chance is not None
    assert found.chance[0][1] == pytest.approx(np.mean(shared), abs=0.006)
    assert [row["jaccard"] for row in found.rows()] == [0.25, 0.0, 0.0]
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert overlap({"a": units[:1]}).chance is None
    assert overlap({"a": units, "b": units}, 20).chance == ((1.0, 1.0), (1.0, 1.0))


def test_budgets_are_numbers_or_shares() -> None:
    counts = [unit_count(budget, 144) for budget in DEFAULT_BUDGETS]
    assert counts == [1, 1, 7, 14, 36, 72, 108]
    ranking = rank_units(case().seen, classes())
    assert ranking.top(0.25) == ranking.units[:6]
    assert ranking.rows()[1] == {
        "rank": 2,
        "unit": str(ranking.units[1]),
        "score": ranking.scores[1],
    }
    for budget in (0, 25, 0.0, 1.01, True, -0.5):
        with pytest.raises(ResiDualError, match=rf"from 1 to 24 \(int\) or .* got {budget}\."):
            unit_count(budget, 24)


def test_what_a_user_can_mend() -> None:
    seen = case().seen
    ranking = rank_units(seen, classes())
    with pytest.raises(ResiDualError, match="got 'best'; random_rankings draws at random"):
        rank_units(seen, classes(), "best")
    with pytest.raises(ResiDualError, match=r"class_embeddings.*to rank by 'unsupervised_given"):
        rank_units(seen, None, "unsupervised_given_task")
    assert rank_units(seen, method="unsupervised").letter == "U"
    with pytest.raises(ResiDualError, match=r"at least one draw.*got draws=0 and 24 units"):
        random_rankings(ranking.units, 0)
    with pytest.raises(ResiDualError, match="at least one budget, got none"):
        selection_curve(ranking, seen, classes(), ())
    fewer = random_rankings(ranking.units[:3], 1)
    with pytest.raises(ResiDualError, match=r"several of the same units, got 2 of \[3, 24\] units"):
        selection_curve([ranking, *fewer], seen, classes())
    with pytest.raises(ResiDualError, match=r"no contributions of layer\d.head\d; there are"):
        selection_curve(ranking, seen.select(["mlp"]), classes())
    with pytest.raises(ResiDualError, match="no curve of 'X'; there are those of supervised, uns"):
        compare_selections(seen, seen, classes()).curve("X")
    with pytest.raises(ResiDualError, match="no line 'O', there are H, B; O needs optimum="):
        compare_selections(seen, seen, classes()).line("O")
    with pytest.raises(ResiDualError, match=r"at least one unit and at most 3 for 'a'.*got 24"):
        overlap({"a": ranking.units}, total=3)
    with pytest.raises(ResiDualError, match="at least one unit for 'a' to compare, got 0"):
        overlap({"a": ()})
