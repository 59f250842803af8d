"""Where each method stands over all protocols: one table."""

from collections.abc import Sequence
from statistics import mean

from ...experiments.bench.results import Result
from ..html import number
from ..paired import score
from .tables import NONE, Bar, Table, grouped, score_of

Task = tuple[str, str, str]


def standing(results: Sequence[Result]) -> Table:
    """A row per method, the best first: how many of the others it is ahead of, and its scores.

    That is the share of a task's other methods that it leaves behind, a tie being half of one, so
    that tasks on which few methods ran count as much as others; and the mean of it over tasks.
    """
    shares = _ahead(results)
    protocols = grouped(results, "protocol")
    tasks = {p: len({r.task for r in part}) for p, part in protocols.items()}
    rows = []
    for method, own in grouped(results).items():
        mine = [found[method] for found in shares.values() if method in found]
        if not mine:  # alone everywhere: there is nothing to be ahead of
            continue
        told = grouped(own, "protocol")
        cells = (
            method,
            f"{number(100 * mean(mine), 1)} %",
            f"{sum(share == 1 for share in mine)} of {len(mine)}",
            *(score_of(told[p], tasks[p]) if p in told else NONE for p in protocols),
            f"{round(mean(r.trained for r in own)):,}",
            number(mean(r.fitting_seconds for r in own), 2),
        )
        rows.append((mean(mine), cells))
    rows.sort(key=lambda row: -row[0])
    headers = ("method", "ahead of", "first in", *protocols, "numbers", "seconds")
    bars = tuple(Bar(cells[0], share) for share, cells in rows)
    return Table("Leaderboard", headers, tuple(cells for _, cells in rows), bars)


def _ahead(results: Sequence[Result]) -> dict[Task, dict[str, float]]:
    """Task -> method -> the share of the task's other methods that it is ahead of."""
    scores: dict[Task, dict[str, list[float]]] = {}
    for result in results:
        scores.setdefault(result.task, {}).setdefault(result.method, []).append(score(result))
    found: dict[Task, dict[str, float]] = {}
    for task, told in scores.items():
        means = {method: mean(values) for method, values in told.items()}
        values = list(means.values())
        if len(values) > 1:
            found[task] = {
                method: (
                    sum(other < value for other in values)
                    + (sum(other == value for other in values) - 1) / 2
                )
                / (len(values) - 1)
                for method, value in means.items()
            }
    return found
