from itertools import combinations, product
from pathlib import Path

import pytest

from tests.pairs import dealt, pairwise, table


def test_any_two_values_meet_in_few_rows() -> None:
    columns = [range(19), "abcd", [False, True], [32, 64]]
    rows = pairwise(*columns)
    for i, j in combinations(range(4), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(columns[i], columns[j]))
    assert len(rows) == len(set(rows)) == 19 * 4  # of 304: no fewer rows can do it


def test_the_order_is_that_of_the_columns() -> None:
    assert pairwise("ab", [1, 2]) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.mark.parametrize("count", [2, 5, 8, 19])
def test_each_value_of_the_first_comes_and_others_meet_in_pairs(count: int) -> None:
    rows = dealt(range(count), "abcd", [False, True])
    assert {row[0] for row in rows} == set(range(count))
    assert {row[1:] for row in rows} == set(product("abcd", [False, True]))
    assert len(rows) == max(count, 8)


def test_a_table_goes_through_all_rows_and_names_the_one_that_fails(tmp_path: Path) -> None:
    seen = []

    @table(("one", "other"), [(1, "a"), (2, "b"), (3, "c")])
    @table("third", [True, False])
    def check(one: int, other: str, third: bool, tmp_path: Path) -> None:
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").touch()
        seen.append((one, other, third))
        if seen[-1] == (3, "c", False):
            with pytest.raises(ValueError, match="never"):
                pass

    with pytest.raises(AssertionError, match=r"row 2: \(3, 'c'\)"):
        check(tmp_path=tmp_path)
    assert [row[:2] for row in seen] == [(1, "a")] * 2 + [(2, "b")] * 2 + [(3, "c")] * 2
    assert [row[2] for row in seen] == [True, False] * 3
