"""Tables of a bench -> Markdown, LaTeX and HTML pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from ...experiments.bench.entries import Published
from ...experiments.bench.results import Result
from ...hub.files import PathLike
from ..charts import tag
from ..html import environment, number, write_page
from ..tables import markdown_table
from .radar import radars
from .tables import Bar, Table, standing, tables

NOTE = (
    "A score is the accuracy on the test images; in base-to-novel, the harmonic mean of that of "
    "classes trained on and of new ones, each among their own half. ± is the standard error over "
    "seeds, which draw the training images. Differences are paired, over all models, data sets and "
    "seeds that both methods ran on (t-test), or over their images where runs do not differ "
    "(McNemar's); a harmonic mean is no mean over images, so that one run of it has no p. "
    "Recall and calibration error are there of the classes trained on. "
    "p is for one comparison: of many, some are below 0.05 by chance. In the table of each model, "
    "* is better and ° worse than the linear probe with p < 0.05. Published rows are what others "
    "measured, often on other test images; no test compares them with ours."
)
PLACES = (
    "Ahead of: the share of a task's other methods that a method leaves behind, a tie being half "
    "of one; the mean over all tasks, which are models, data sets and protocols. Scores are means "
    "over tasks, for each protocol; a method that was left out of one has none there. Differences "
    "with their tests are in summary.html."
)


def markdown(
    results: Sequence[Result], title: str, published: Mapping[str, Published] | None = None
) -> str:
    """All tables."""
    parts = [f"# {title}", NOTE, _runs(results)]
    for table in tables(results, published):
        parts += [f"## {table.title}", markdown_table(table.headers, table.cells)]
        parts += ["\n".join(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n\n".join(parts) + "\n"


def latex(
    results: Sequence[Result], title: str, published: Mapping[str, Published] | None = None
) -> str:
    """All tables, to be pasted or read by `\\input`."""
    parts = [f"% {_escaped(title)}", "% " + _escaped(NOTE)]
    for table in tables(results, published):
        columns = "l" + "r" * (len(table.headers) - 1)
        rows = [" & ".join(map(_escaped, row)) + r" \\" for row in (table.headers, *table.cells)]
        body = "\n".join([rows[0], r"\hline", *rows[1:]])
        notes = "".join(f"% {_escaped(note)}\n" for note in table.notes)
        parts.append(
            f"{notes}\\begin{{table}}\n\\centering\n"
            f"\\caption{{{_escaped(table.title)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def write_summaries(
    results: Sequence[Result],
    folder: PathLike,
    title: str,
    published: Mapping[str, Published] | None = None,
) -> list[str]:
    """Write `summary.md`, `.tex` and `.html` and `leaderboard.html`, each whole; their names."""
    texts = {
        "summary.md": markdown(results, title, published),
        "summary.tex": latex(results, title, published),
        "summary.html": page(results, title, tables(results, published), NOTE, published),
        "leaderboard.html": page(results, title, [standing(results)], PLACES),
    }
    for name, text in texts.items():
        write_page(Path(folder) / name, text)
    return list(texts)


def page(
    results: Sequence[Result],
    title: str,
    tables: Sequence[Table],
    note: str,
    published: Mapping[str, Published] | None = None,
) -> str:
    """Tables as an HTML page that asks nothing of the network, with a radar for each model."""
    pictures = {}
    for table in tables:
        if table.of is not None:
            own = [r for r in results if (r.protocol, r.model) == table.of]
            pictures[table.title] = radars(own, published or {}, *table.of)
    template = environment().get_template("bench.html.jinja")
    return template.render(
        title=title, note=note, runs=_runs(results), tables=tables, bar=bar, radars=pictures
    )


def bar(row: Bar) -> Markup:
    """A bar from nothing to everything."""
    share, kind = row.share, "before" if row.published else "after"
    place = {"x": "0", "y": "4", "height": "14", "rx": "2"}
    track = tag("rect", class_="track", width="100%", **place)
    filled = tag("rect", class_=kind, width=f"{100 * share:.2f}%", **place)
    title = tag("title", f"{number(100 * share, 1)} %")
    return tag("svg", title, track, filled, class_="bar", role="img", width="100%", height="22")


def _runs(results: Sequence[Result]) -> str:
    machines = ", and ".join(sorted({result.machine for result in results}))
    packages = results[-1].versions if results else {}
    said = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{len(results)} runs, on {machines}; {said}."


def _escaped(text: str) -> str:
    """Text for LaTeX, on one line: the rest of a comment would be none, and an empty line ends."""
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "°": r"$^\circ$", "−": "$-$", "–": "--"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special |= {"<": "$<$", ">": "$>$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    found = "".join(special.get(sign, sign) for sign in " ".join(text.splitlines()))
    # a row that begins with a bracket would be an option of the end of the row above
    return "{}" * found.startswith(("[", "*")) + found
