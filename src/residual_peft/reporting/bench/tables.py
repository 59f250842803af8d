"""The rows of a bench -> tables of texts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from ...experiments.bench.entries import Published
from ...experiments.bench.results import LORA, PROBE, ZERO_SHOT, Result
from ..html import number, with_sign
from ..paired import difference, score
from ..tables import readable_bytes

LEVEL = 0.05
NONE = "–"


@dataclass(frozen=True)
class Bar:
    """One of a ranking."""

    name: str  # of a method
    share: float  # how long it is, of 1
    published: bool = False  # whether others measured it


@dataclass(frozen=True)
class Table:
    """Texts: the first column to the left."""

    title: str  # above it
    headers: tuple[str, ...]  # of the columns
    cells: tuple[tuple[str, ...], ...]  # by row
    bars: tuple[Bar, ...] = ()  # of the rows that have one score
    of: tuple[str, str] | None = None  # protocol and model, of a table that is of one
    notes: tuple[str, ...] = ()  # on its rows


def tables(
    results: Sequence[Result], published: Mapping[str, Published] | None = None
) -> list[Table]:
    """A leaderboard for each protocol, and for each of its models the scores on every data set.

    What others have published stands below ours.
    """
    found = []
    for protocol, own in grouped(results, "protocol").items():
        found.append(_leaderboard(own, protocol))
        for model, mine in grouped(own, "model").items():
            theirs = published_of(published or {}, protocol, model)
            found.append(_scores_of(mine, theirs, protocol, model))
    more = (shifts(results), worst_groups(results), _curves(results), _forgotten(results))
    return [*found, *(table for table in more if table.cells)]


def published_of(
    published: Mapping[str, Published], protocol: str, model: str
) -> dict[str, Published]:
    """Published rows of a model that have a figure in a protocol."""
    return {
        name: row
        for name, row in published.items()
        if row.model == model and protocol in row.protocols
    }


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


def _ahead(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Task -> method -> the share of the task's other methods that it is ahead of."""
    from scipy.stats import rankdata

    found = {}
    for task, own in grouped(results, "task").items():
        methods = grouped(own)
        ranks = rankdata([mean(map(score, rows)) for rows in methods.values()])  # from 1 up
        if len(ranks) > 1:
            shares = (ranks - 1) / (len(ranks) - 1)
            found[task] = dict(zip(methods, shares.tolist(), strict=True))
    return found


def _leaderboard(results: Sequence[Result], protocol: str) -> Table:
    beside, methods = {"zero-shot": ZERO_SHOT, "probe": PROBE, "LoRA": LORA}, grouped(results)
    others = {title: methods.get(name, []) for title, name in beside.items()}
    others = {title: own for title, own in others.items() if own or title != "LoRA"}
    tasks, rows = len({result.task for result in results}), []
    for method, own in methods.items():
        ran = len({result.task for result in own})
        gaps = [None if own == one else difference(own, one) for one in others.values()]
        cells = (
            method,
            # a mean over some tasks is no rank among means over all
            score_of(own, tasks),
            *(NONE if gap is None else gap.text for gap in gaps),
            _percent(over_tasks(own, lambda r: r.mean_per_class_recall)),
            _percent(over_tasks(own, lambda r: r.calibration_error)),
            f"{round(over_tasks(own, lambda r: r.trained)):,}",
            readable_bytes(round(over_tasks(own, lambda r: r.bytes))),
            number(over_tasks(own, lambda r: r.fitting_seconds), 2),
            _memory(own),
            f"{len(own)}",
        )
        rows.append((ran, over_tasks(own), cells))
    rows.sort(key=lambda row: (-row[0], -row[1]))
    headers = (
        "method", "score", *(f"less {title}" for title in others), "recall", "calibration error",
        "numbers", "bytes", "seconds", "memory, mean and peak", "runs",
    )  # fmt: skip
    bars = tuple(Bar(cells[0], value) for ran, value, cells in rows if ran == tasks)
    return Table(protocol, headers, tuple(cells for *_, cells in rows), bars)


def _scores_of(
    results: Sequence[Result], published: Mapping[str, Published], protocol: str, model: str
) -> Table:
    data, rows, bars = grouped(results, "data"), [], []
    for method, own in grouped(results).items():
        whole = {result.data for result in own} == {*data}
        cells = [_cell(grouped(here), method) for here in data.values()]
        rows.append((method, *cells, _percent(over_tasks(own)) if whole else NONE))
        bars += [Bar(method, over_tasks(own))] if whole else []
    notes = []
    for name, row in published.items():
        figures = row.accuracy.get(protocol, {})
        average = row.average.get(protocol)
        if average is None and {*data} <= {*figures}:
            average = mean(figures[each] for each in data)
        cells = [number(figures[each], 1) if each in figures else NONE for each in data]
        rows.append(
            (f"{name} (published)", *cells, NONE if average is None else number(average, 1))
        )
        bars += [] if average is None else [Bar(f"{name} (published)", average / 100, True)]
        notes.append(f"{name}: {row.source}. {row.note}".strip())
    bars.sort(key=lambda bar: -bar.share)
    return Table(
        f"{protocol}: {model}",
        ("method", *data, "mean"),
        tuple(rows),
        tuple(bars) if published else (),
        (protocol, model),
        tuple(notes),
    )


def shifts(results: Sequence[Result]) -> Table:
    """Scores on shifted and corrupted test images, and how they differ from those on clean ones."""
    told = [result for result in results if result.shifted]
    kinds = list(dict.fromkeys(kind for result in told for kind in result.shifted))
    rows = []
    for protocol, method, own in _by_method(told):
        cells = []
        for kind in kinds:
            pairs = [(r.accuracy, r.shifted[kind]) for r in own if kind in r.shifted]
            clean, other = map(mean, zip(*pairs, strict=True)) if pairs else (0.0, None)
            gap = None if other is None else with_sign(100 * (other - clean), 1)
            cells.append(NONE if other is None else f"{_percent(other)} ({gap})")
        rows.append((f"{protocol}, {method}", _percent(mean(r.accuracy for r in own)), *cells))
    title = "Other test images: score, and difference from clean ones of the same runs"
    return Table(title, ("protocol, method", "clean", *kinds), tuple(rows))


def worst_groups(results: Sequence[Result]) -> Table:
    """How the group of images fares that fares worst."""
    told = [result for result in results if result.worst_group_accuracy is not None]
    rows = []
    for protocol, data in dict.fromkeys((result.protocol, result.data) for result in told):
        here = [result for result in told if (result.protocol, result.data) == (protocol, data)]
        for method, own in grouped(here).items():
            worst = [r.worst_group_accuracy or 0.0 for r in own]
            names = [r.worst_group or "" for r in own]
            clean = _percent(mean(r.accuracy for r in own))
            often = max(names, key=names.count)
            rows.append((f"{protocol}, {data}, {method}", clean, _with_error(worst), often))
    headers = ("protocol, data set, method", "all images", "worst group", "most often")
    return Table("Worst groups", headers, tuple(rows))


def _cell(methods: Mapping[str, Sequence[Result]], method: str) -> str:
    if method not in methods:
        return NONE
    gap = difference(methods[method], methods.get(PROBE, ()))
    mark = ""
    if gap is not None and gap.p is not None and gap.p < LEVEL:
        mark = "*" if gap.mean > 0 else "°"
    return _with_error([score(result) for result in methods[method]]) + mark


def _forgotten(results: Sequence[Result]) -> Table:
    """Zero-shot accuracy on all other tasks, before and after."""
    rows = []
    adapting = [result for result in results if result.forgotten]
    for protocol, method, own in _by_method(adapting):
        pairs = [pair for result in own for pair in result.forgotten.values()]
        before, after = (mean(values) for values in zip(*pairs, strict=True))
        gap = with_sign(100 * (after - before), 1)
        rows.append((protocol, method, _percent(before), _percent(after), gap, f"{len(pairs)}"))
    headers = ("protocol", "method", "before", "after", "difference", "task pairs")
    return Table("Zero-shot accuracy on other tasks after adapting", headers, tuple(rows))


def _curves(results: Sequence[Result]) -> Table:
    """Methods part of the way from zero-shot to their fit: here, and on all other tasks."""
    drawn = [result for result in results if result.curve]
    shares = sorted({share for result in drawn for share in result.curve}, key=float)
    rows = []
    for protocol, method, own in _by_method(drawn):
        curves = [result.curve for result in own]
        for place, what in enumerate(("here", "other tasks")):
            told = [[c[t][place] for c in curves if len(c.get(t, ())) > place] for t in shares]
            cells = (_percent(mean(values)) if values else NONE for values in told)
            if any(told):
                rows.append((f"{protocol}, {method}, {what}", *cells))
    headers = ("accuracy at t", *shares)
    return Table("Part of the way from zero-shot to the fit", headers, tuple(rows))


def _by_method(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """Protocol, method and their results, for those that have some."""
    methods = grouped(results)
    for protocol, mine in grouped(results, "protocol").items():
        own = grouped(mine)
        yield from ((protocol, method, own[method]) for method in methods if method in own)


def over_tasks(results: Sequence[Result], of: Callable[[Result], float] = score) -> float:
    """Mean over tasks of the mean over seeds, of the score or something else."""
    tasks: dict[tuple[str, str], list[float]] = {}
    for result in results:
        tasks.setdefault((result.model, result.data), []).append(of(result))
    return mean(map(mean, tasks.values()))


def score_of(results: Sequence[Result], tasks: int) -> str:
    """The score over tasks, and over how many of all where that is not the same."""
    ran = len({result.task for result in results})
    return _percent(over_tasks(results)) + (f" ({ran} of {tasks} tasks)" if ran < tasks else "")


def grouped(results: Iterable[Result], name: str = "method") -> dict[Any, list[Result]]:
    """Results by what they are of, each in the order of its first."""
    found: dict[Any, list[Result]] = {}
    for result in results:
        found.setdefault(getattr(result, name), []).append(result)
    return found


def _percent(share: float) -> str:
    return number(100 * share, 1)


def _with_error(shares: Sequence[float]) -> str:
    """Their mean and its standard error."""
    error = f" ± {number(100 * stdev(shares) / sqrt(len(shares)), 1)}" if shares[1:] else ""
    return _percent(mean(shares)) + error


def _memory(results: Sequence[Result]) -> str:
    """The mean over time, where it was watched, and the peak."""
    watched = [result.mean_memory for result in results if result.mean_memory]
    peak = readable_bytes(max(result.peak_memory for result in results))
    return f"{readable_bytes(round(mean(watched))) if watched else NONE} / {peak}"
