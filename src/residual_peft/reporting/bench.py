"""The rows of a bench -> tables in Markdown and LaTeX, and one HTML page with bars."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from markupsafe import Markup

from ..experiments.bench.results import LORA, PROBE, ZERO_SHOT, Result
from ..hub.files import PathLike, atomic_file
from .charts import tag
from .html import environment, number, signed
from .paired import Difference, difference, score
from .tables import markdown_table, readable_bytes

LEVEL = 0.05
NONE = "–"
NOTE = (
    "A score is the accuracy on the test images; in base-to-novel, the harmonic mean of that of "
    "classes trained on and of new ones, each among their own half. ± is the standard error over "
    "seeds, which draw the training images. Differences are paired, over all models, data sets and "
    "seeds that both methods ran on (t-test), or over their images where runs do not differ "
    "(McNemar's); a harmonic mean is no mean over images, so that one run of it has no p. "
    "p is for one comparison: of many, some are below 0.05 by chance. In the table of each model, "
    "* is better and ° worse than the linear probe with p < 0.05."
)


@dataclass(frozen=True)
class Table:
    """Texts: the first column to the left."""

    title: str
    headers: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    bars: tuple[tuple[str, float], ...] = ()


def tables(results: Sequence[Result]) -> list[Table]:
    """A leaderboard for each protocol, and for each of its models the scores on every data set."""
    found = []
    for protocol in _names(results, lambda result: result.protocol):
        own = [result for result in results if result.protocol == protocol]
        found.append(_leaderboard(own, protocol))
        for model in _names(own, lambda result: result.model):
            found.append(_scores_of([r for r in own if r.model == model], protocol, model))
    return [*found, *(table for table in (_curves(results), _forgotten(results)) if table.cells)]


def markdown(results: Sequence[Result], title: str) -> str:
    """All tables."""
    parts = [f"# {title}", NOTE, _made(results)]
    for table in tables(results):
        parts += [f"## {table.title}", markdown_table(table.headers, table.cells)]
    return "\n\n".join(parts) + "\n"


def latex(results: Sequence[Result], title: str) -> str:
    """All tables, to be pasted or read by `\\input`."""
    parts = [f"% {_escaped(title)}", "% " + _escaped(NOTE)]
    for table in tables(results):
        columns = "l" + "r" * (len(table.headers) - 1)
        rows = [" & ".join(map(_escaped, row)) + r" \\" for row in (table.headers, *table.cells)]
        body = "\n".join([rows[0], r"\hline", *rows[1:]])
        parts.append(
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_escaped(table.title)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def page(results: Sequence[Result], title: str) -> str:
    """One HTML page that asks nothing of the network."""
    return (
        environment()
        .get_template("bench.html.jinja")
        .render(title=title, note=NOTE, made=_made(results), tables=tables(results), bar=bar)
    )


def write_summaries(results: Sequence[Result], folder: PathLike, title: str) -> list[str]:
    """Write `summary.md`, `summary.tex` and `summary.html`, each whole; their names."""
    texts = {"md": markdown, "tex": latex, "html": page}
    for ending, made in texts.items():
        with atomic_file(Path(folder) / f"summary.{ending}") as temporary:
            temporary.write_text(made(results, title), encoding="utf-8", errors="replace")
    return [f"summary.{ending}" for ending in texts]


def bar(share: float) -> Markup:
    """A bar from nothing to everything."""
    track = tag("rect", class_="track", x="0", y="4", width="100%", height="14", rx="2")
    filled = tag("rect", class_="after", x="0", y="4", width=f"{100 * share:.2f}%", height="14",
                 rx="2")  # fmt: skip
    title = tag("title", f"{number(100 * share, 1)} %")
    return tag("svg", title, track, filled, class_="bar", role="img", width="100%", height="22")


def _leaderboard(results: Sequence[Result], protocol: str) -> Table:
    beside = {"zero-shot": ZERO_SHOT, "probe": PROBE, "LoRA": LORA}
    others = {title: _of(results, name) for title, name in beside.items()}
    others = {title: own for title, own in others.items() if own or title != "LoRA"}
    rows = []
    for method in _names(results, lambda result: result.method):
        own = _of(results, method)
        cells = (
            method,
            _percent(_over_tasks(own)),
            *(_text(difference(own, one)) if own != one else NONE for one in others.values()),
            _percent(mean(r.mean_per_class_recall for r in own)),
            _percent(mean(r.calibration_error for r in own)),
            f"{round(mean(r.trained for r in own)):,}",
            readable_bytes(round(mean(r.bytes for r in own))),
            number(mean(r.fitting_seconds for r in own), 2),
            _memory(own),
            f"{len(own)}",
        )
        rows.append((_over_tasks(own), cells))
    rows.sort(key=lambda row: -row[0])
    headers = (
        "method", "score", *(f"less {title}" for title in others), "recall", "calibration error",
        "numbers", "bytes", "seconds", "memory, mean and peak", "runs",
    )  # fmt: skip
    bars = tuple((cells[0], value) for value, cells in rows)
    return Table(protocol, headers, tuple(cells for _, cells in rows), bars)


def _scores_of(results: Sequence[Result], protocol: str, model: str) -> Table:
    data = _names(results, lambda result: result.data)
    rows = []
    for method in _names(results, lambda result: result.method):
        cells = [_cell(results, method, name) for name in data]
        rows.append((method, *cells))
    return Table(f"{protocol}: {model}", ("method", *data), tuple(rows))


def _cell(results: Sequence[Result], method: str, data: str) -> str:
    here = [result for result in results if result.data == data]
    own = _of(here, method)
    if not own:
        return NONE
    found = [score(result) for result in own]
    error = f" ± {number(100 * stdev(found) / sqrt(len(found)), 1)}" if len(found) > 1 else ""
    gap = difference(own, _of(here, PROBE))
    mark = ""
    if gap is not None and gap.p is not None and gap.p < LEVEL:
        mark = "*" if gap.mean > 0 else "°"
    return f"{_percent(mean(found))}{error}{mark}"


def _forgotten(results: Sequence[Result]) -> Table:
    """Zero-shot accuracy on all other tasks, before and after."""
    rows = []
    adapting = [result for result in results if result.forgotten]
    for protocol in _names(adapting, lambda result: result.protocol):
        for method in _names(adapting, lambda result: result.method):
            own = [r for r in adapting if (r.protocol, r.method) == (protocol, method)]
            pairs = [pair for result in own for pair in result.forgotten.values()]
            if pairs:
                before, after = (mean(values) for values in zip(*pairs, strict=True))
                rows.append(
                    (protocol, method, _percent(before), _percent(after),
                     signed(100 * (after - before), 1), f"{len(pairs)}")
                )  # fmt: skip
    headers = ("protocol", "method", "before", "after", "difference", "task pairs")
    return Table("Zero-shot accuracy on other tasks after adapting", headers, tuple(rows))


def _curves(results: Sequence[Result]) -> Table:
    """Methods part of the way from zero-shot to their fit: here, and on all other tasks."""
    drawn = [result for result in results if result.curve]
    shares = sorted({share for result in drawn for share in result.curve}, key=float)
    rows = []
    for protocol in _names(drawn, lambda result: result.protocol):
        for method in _names(drawn, lambda result: result.method):
            own = [r.curve for r in drawn if (r.protocol, r.method) == (protocol, method)]
            for place, what in enumerate(("here", "other tasks")):
                told = [[c[t][place] for c in own if len(c.get(t, ())) > place] for t in shares]
                cells = (_percent(mean(values)) if values else NONE for values in told)
                if any(told):
                    rows.append((f"{protocol}, {method}, {what}", *cells))
    headers = ("accuracy at t", *shares)
    return Table("Part of the way from zero-shot to the fit", headers, tuple(rows))


def _made(results: Sequence[Result]) -> str:
    machines = ", and ".join(sorted({result.machine for result in results}))
    packages = results[-1].versions if results else {}
    said = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{len(results)} runs, on {machines}; {said}."


def _over_tasks(results: Sequence[Result]) -> float:
    """Mean over tasks of the mean over seeds."""
    tasks: dict[tuple[str, str], list[float]] = {}
    for result in results:
        tasks.setdefault((result.model, result.data), []).append(score(result))
    return mean(map(mean, tasks.values()))


def _names(results: Iterable[Result], of: Callable[[Result], str]) -> list[str]:
    return list(dict.fromkeys(map(of, results)))


def _of(results: Iterable[Result], method: str) -> list[Result]:
    return [result for result in results if result.method == method]


def _percent(share: float) -> str:
    return number(100 * share, 1)


def _memory(results: Sequence[Result]) -> str:
    """The mean over time, where it was watched, and the peak."""
    watched = [result.mean_memory for result in results if result.mean_memory]
    peak = readable_bytes(max(result.peak_memory for result in results))
    return f"{readable_bytes(round(mean(watched))) if watched else NONE} / {peak}"


def _text(found: Difference | None) -> str:
    return NONE if found is None else found.text


def _escaped(text: str) -> str:
    """Text for LaTeX, on one line: the rest of a comment would be none, and an empty line ends."""
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "°": r"$^\circ$", "−": "$-$", "–": "--"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special |= {"<": "$<$", ">": "$>$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(sign, sign) for sign in " ".join(text.splitlines()))
