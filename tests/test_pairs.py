from itertools import combinations, product

from tests.pairs import pairwise


def test_any_two_values_meet_in_few_rows() -> None:
    columns = [range(19), "abcd", [False, True], [32, 64]]
    rows = pairwise(*columns)
    for i, j in combinations(range(4), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(columns[i], columns[j]))
    assert len(rows) == len(set(rows)) == 19 * 4  # of 304: no fewer rows can do it


def test_the_order_is_that_of_the_columns() -> None:
    assert pairwise("ab", [1, 2]) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
