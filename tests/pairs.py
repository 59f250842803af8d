"""Few cases in which any two values of any two parameters meet, in place of all products."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*columns: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows with one value of each column, such that any two values of two columns share a row.

    Greedy over the full product, ties to the earlier row, so that they are the same every time.
    """
    values = [list(column) for column in columns]
    rows = list(product(*(range(len(column)) for column in values)))
    met = {
        row: {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)} for row in rows
    }
    missing, chosen = set().union(*met.values()), []
    while missing:
        best = max(rows, key=lambda row: len(met[row] & missing))
        missing -= met[best]
        chosen.append(best)
    return [
        tuple(column[i] for column, i in zip(values, row, strict=True)) for row in sorted(chosen)
    ]


def in_pairs(**columns: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` by name over `pairwise`."""
    return pytest.mark.parametrize(tuple(columns), pairwise(*columns.values()))
