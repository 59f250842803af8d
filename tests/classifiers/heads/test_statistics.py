"""Sums of features: added, forgotten, merged, moved, saved; over several processes as over one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from residual_peft.classifiers.heads import HeadStatistics, fit_statistics
from residual_peft.errors import ResiDualError
from tests.launch import launch
from tests.pairs import table

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-7}


def summed(data: Any, rows: Tensor | slice = slice(None), **options: Any) -> HeadStatistics:
    statistics = HeadStatistics(data.features.shape[1], data.class_count, **options)
    for part in torch.arange(len(data.labels))[rows].split(7):
        statistics.add(data.features[part], data.labels[part])
    return statistics


def assert_same(one: HeadStatistics, other: HeadStatistics) -> None:
    """Equal sums, whatever they count from."""
    assert (one.rows, one.class_count) == (other.rows, other.class_count)
    assert one.total == pytest.approx(other.total)
    origin = torch.full_like(one.origin, 3.0)
    left, right = (s.from_origin(origin).state() for s in (one, other))
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], **CLOSE)


@table("several", [False, True])
def test_sums_are_those_of_loops(drawn: Any, several: bool) -> None:
    data = drawn((8, 5, 4), 6)
    labels = (data.zero_shot > 0).long() if several else data.labels
    weights = torch.rand(17, generator=torch.Generator().manual_seed(2)).double() + 0.5
    statistics = HeadStatistics(6, 3, per_class=True)
    for part in torch.arange(17).split(5):
        statistics.add(data.features[part].float().double(), labels[part], weights[part])
    at_zero = statistics.from_origin(torch.zeros(6).double())
    counts, sums = torch.zeros(3).double(), torch.zeros(3, 6).double()
    squares, class_squares = torch.zeros(6, 6).double(), torch.zeros(3, 6, 6).double()
    for row, label, w in zip(data.features.float().double(), labels, weights, strict=True):
        squares += w * torch.outer(row, row)
        for c in range(3):
            if label[c] if several else label == c:
                counts[c] += w
                sums[c] += w * row
                class_squares[c] += w * torch.outer(row, row)
    assert statistics.rows == 17
    assert statistics.total == pytest.approx(float(weights.sum()))
    torch.testing.assert_close(at_zero.squares, squares, **CLOSE)
    torch.testing.assert_close(at_zero.counts, counts, **CLOSE)
    torch.testing.assert_close(at_zero.class_sums, sums, **CLOSE)
    torch.testing.assert_close(at_zero.class_squares, class_squares, **CLOSE)
    torch.testing.assert_close(statistics.class_means(), sums / counts.unsqueeze(1), **CLOSE)


def test_large_means_cost_no_digits(drawn: Any) -> None:
    data = drawn((8, 9), 4)
    near, far = (HeadStatistics(4, 2) for _ in range(2))
    for part in torch.arange(17).split(5):
        near.add(data.features[part], data.labels[part])
        far.add(data.features[part] + 2.0**30, data.labels[part])
    torch.testing.assert_close(far.squares, near.squares, rtol=1e-5, atol=1e-5)


def test_forgetting_is_never_having_seen(drawn: Any) -> None:
    data = drawn((8, 5, 4), 6)
    statistics = summed(data, per_class=True)
    statistics.forget(data.features[3:9], data.labels[3:9])
    kept = torch.tensor([*range(3), *range(9, 17)])
    assert_same(statistics, summed(data, kept, per_class=True))
    statistics.forget(data.features[kept], data.labels[kept])
    assert_same(statistics, HeadStatistics(6, 3, per_class=True))
    assert float(statistics.squares.abs().max()) == 0


def test_a_new_class_and_its_images(drawn: Any) -> None:
    data = drawn((8, 5, 4), 6)
    statistics = HeadStatistics(6, 2, per_class=True)
    old = data.labels < 2
    statistics.add(data.features[old], data.labels[old])
    assert statistics.add_class() == 2
    statistics.add(data.features[~old], data.labels[~old])
    assert_same(statistics, summed(data, per_class=True))


@table("per_class", [True, False])
def test_a_class_taken_out(drawn: Any, per_class: bool) -> None:
    data = drawn((8, 5, 4), 6)
    statistics = summed(data, per_class=per_class)
    gone = data.labels == 1
    statistics.remove_class(1, None if per_class else data.features[gone])
    expected = HeadStatistics(6, 2, per_class=per_class)
    expected.add(data.features[~gone], data.labels[~gone].clamp_max(1))
    assert_same(statistics, expected)


def test_merging_is_adding(drawn: Any) -> None:
    data = drawn((8, 5, 4), 6)
    one, other = summed(data, slice(0, 6)), summed(data, slice(6, None))
    before = other.state()
    one.merge(other)
    one.merge(HeadStatistics(6, 3))
    assert_same(one, summed(data))
    assert all(torch.equal(before[name], t) for name, t in other.state().items())
    empty = HeadStatistics(6, 3)
    empty.merge(one)
    empty.add(data.features[:2], data.labels[:2])
    assert one.rows == 17  # and has none of the two


@table("per_class", [True, False])
def test_what_is_saved_comes_back(drawn: Any, per_class: bool) -> None:
    statistics = summed(drawn((8, 5, 4), 6), per_class=per_class, source="a basis")
    again = HeadStatistics.from_state(statistics.state(), "a basis")
    assert_same(again, statistics)
    assert again.per_class is per_class
    again.merge(statistics)
    assert again.rows == 34


def test_shares_of_the_images_sum_to_all_of_them(drawn: Any) -> None:
    data = drawn((8, 5, 4), 6)
    shares = [summed(data, slice(0, 6)), HeadStatistics(6, 3), summed(data, slice(6, None))]
    barrier, given = Barrier(3), [torch.zeros(0)] * 3

    def across(rank: int) -> HeadStatistics:
        def total(tensor: Tensor) -> Tensor:
            given[rank] = tensor
            barrier.wait(10)
            found = torch.stack(given).sum(0)
            barrier.wait(10)
            return found

        return shares[rank].across_processes(total)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(across, range(3)))
    for whole in found:
        assert_same(whole, summed(data))
    assert_same(shares[0], summed(data, slice(0, 6)))


@pytest.mark.slow
def test_two_processes_and_one_without_images_sum_what_one_does(drawn: Any, tmp_path: Path) -> None:
    data = drawn((8, 5, 4), 6)
    torch.save((data.features, data.labels), tmp_path / "rows.pt")
    program = "tests.classifiers.heads.summing_process"
    launch("-m", program, tmp_path / "rows.pt", tmp_path, processes=3)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for state in found[1:]:
        assert all(torch.equal(state[name], t) for name, t in found[0].items())
    assert_same(HeadStatistics.from_state(found[0]), summed(data, per_class=True))


def test_nobody_has_images() -> None:
    whole = HeadStatistics(6, 3).across_processes(lambda tensor: 2 * tensor)
    assert whole.rows == 0


@table(
    ("call", "message"),
    [
        (lambda s: s.add(torch.ones(2, 7), torch.zeros(2)), r"features \(B, 6\).*got \(2, 7\)"),
        (lambda s: s.add(torch.ones(2, 6), torch.zeros(3)), "each of 2 images, got 3 labels"),
        (lambda s: s.add(torch.full((2, 6), torch.inf), torch.zeros(2)), "12 numbers that are not"),
        (
            lambda s: s.add(torch.ones(2, 6), torch.tensor([0, 3])),
            r"from 0 to 2 \(3 classes\), got 3 for image 1 of the batch\. add_class\(\) makes room",
        ),
        (lambda s: s.add(torch.ones(2, 6), torch.ones(2, 4)), r"shape \(N, 3\), a 0 or 1 per"),
        (lambda s: s.add(torch.ones(2, 6), torch.zeros(2)), "wanted class numbers as labels"),
        (
            lambda s: s.add(torch.ones(2, 6), torch.zeros(2).long(), torch.zeros(2)),
            "a weight above 0",
        ),
        (
            lambda s: s.forget(torch.ones(5, 6), torch.full((5,), 2)),
            "images that were added, got 5 of 17 and 5 of 4 of class 2",
        ),
        (
            lambda s: s.forget(torch.full((1, 6), 1e4), torch.tensor([0])),
            "added, got others: their",
        ),
        (lambda s: s.remove_class(3), "wanted one of 3 classes"),
        (lambda s: s.remove_class(1), "the 5 images of class 1 to take out with it, got 0"),
        (lambda s: s.merge(HeadStatistics(6, 4)), r"\('', 6, 3, False\) and \('', 6, 4, False\)"),
        (lambda s: s.merge(HeadStatistics(6, 3, "other")), "sums of other models or bases"),
        (lambda s: HeadStatistics(0, 3), "got K = 0 and C = 3"),
        (lambda s: HeadStatistics.from_state({}), "got none of class_sums, counts, origin"),
        (
            lambda s: HeadStatistics.from_state(s.state() | {"squares": torch.ones(3)}),
            r"finite squares \(21,\) .* got \(3,\): they are damaged",
        ),
        (
            lambda s: HeadStatistics.from_state(s.state() | {"sums": torch.full((6,), torch.nan)}),
            "finite sums",
        ),
    ],
)
def test_what_does_not_go_together(drawn: Any, call: Any, message: str) -> None:
    statistics = summed(drawn((8, 5, 4), 6))
    before = statistics.state()
    with pytest.raises(ResiDualError, match=message):
        call(statistics)
    assert all(torch.equal(before[name], t) for name, t in statistics.state().items())


def test_weighted_images_are_forgotten_not_their_class(drawn: Any) -> None:
    data = drawn((8, 5, 4), 6)
    statistics = HeadStatistics(6, 3, per_class=True)
    statistics.add(data.features, data.labels, torch.full((17,), 2.0))
    with pytest.raises(ResiDualError, match="images of weight 1 to take a class out"):
        statistics.remove_class(1)
    # 0.1 + 0.2 + … less each of them is no 0: a class must not live on by rounding
    each = torch.rand(40, 17, generator=torch.Generator().manual_seed(3)).double() + 0.1
    for weights in each:
        statistics = HeadStatistics(6, 3, per_class=True)
        statistics.add(data.features, data.labels, weights)
        for row in (data.labels == 1).nonzero().flatten().split(1):
            statistics.forget(data.features[row], data.labels[row], weights[row])
        assert float(statistics.counts[1]) == float(statistics.class_sums[1].abs().max()) == 0
        assert statistics.class_means()[1].isnan().all()
        with pytest.raises(ResiDualError, match="got 12 and none of class 1"):
            fit_statistics(statistics)
