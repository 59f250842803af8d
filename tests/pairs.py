"""Few cases in place of all products: pairs, values in turn, and tables of short checks."""

import functools
import inspect
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
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


def dealt(first: Iterable[Any], *others: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every value of the first column in turn, and any two values of two others share a row."""
    ones, rest = list(first), [list(column) for column in others]
    rows = pairwise(*rest) if len(rest) > 1 else [(value,) for value in rest[0]]
    count = max(len(ones), len(rows))
    return [(ones[i % len(ones)], *rows[i % len(rows)]) for i in range(count)]


def in_turn(**columns: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` by name over `dealt`: as many cases as the first column is long, or few more.

    For what does not depend on the first column's value beside another's: each model under some
    of the settings, each pair of settings under some model.
    """
    return pytest.mark.parametrize(tuple(columns), dealt(*columns.values()))


def table(
    names: str | tuple[str, ...], rows: Iterable[Any], ids: Any = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One test of all rows, called as `parametrize` is: for many short checks of one function.

    Each row has a `tmp_path` and a `monkeypatch` of its own, other fixtures' folders as they were
    made, and a `capsys` or `caplog` without what was said before. The row that fails is named.
    """
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    values = [tuple(row) if len(columns) > 1 else (row,) for row in rows]
    labels = list(ids) if ids is not None and not callable(ids) else values
    assert values

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def every_row(**fixtures: Any) -> None:
            with TemporaryDirectory() as kept:
                for number, row in enumerate(values):
                    cells = dict(zip(columns, row, strict=True))
                    try:
                        with _for_one_row(fixtures, number, Path(kept)) as given:
                            test(**cells, **given)
                    except (Exception, pytest.fail.Exception) as error:
                        raise AssertionError(f"row {number}: {labels[number]!r}") from error

        kept = [p for name, p in signature.parameters.items() if name not in columns]
        every_row.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return every_row

    return decorate


@contextmanager
def _for_one_row(
    fixtures: dict[str, Any], number: int, kept: Path
) -> Generator[dict[str, Any], None, None]:
    """The fixtures as a test of that row alone would have them; `kept` holds copies of folders."""
    given = dict(fixtures)
    for name, value in fixtures.items():
        if name == "tmp_path":
            given[name] = value / str(number)
        elif isinstance(value, Path) and value.is_dir():
            if number == 0:
                shutil.copytree(value, kept / name, symlinks=True)
            else:  # emptied, not replaced: it may be the current folder
                for path in value.iterdir():
                    whole = path.is_dir() and not path.is_symlink()
                    shutil.rmtree(path) if whole else path.unlink()
                shutil.copytree(kept / name, value, symlinks=True, dirs_exist_ok=True)
    if "tmp_path" in given:
        given["tmp_path"].mkdir()
    if "capsys" in given:
        given["capsys"].readouterr()
    if "caplog" in given:
        given["caplog"].clear()
    with pytest.MonkeyPatch.context() as patch:
        yield given | ({"monkeypatch": patch} if "monkeypatch" in given else {})
