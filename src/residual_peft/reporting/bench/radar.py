"""One radar for a model in a protocol, as an SVG whose colours are the page's."""

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from markupsafe import Markup

from ...experiments import Row
from ...experiments.bench.entries import Published
from ...experiments.bench.results import LORA, PROBE, ZERO_SHOT, Result
from ..figures import COLORS, draw_radar
from ..paired import score
from .tables import grouped, over_tasks, published_of

LEAST, MOST = 3, len(COLORS)
"""Data sets that a radar takes, and lines that can be told apart in it."""
BEST = 3
"""Of the methods beside those that all are compared with."""
_PAINT = {"#b0b0b0": "--line", "#000000": "--ink"} | {
    color.lower(): f"--c{place}" for place, color in enumerate(COLORS[:-1])
}


def radars(
    results: Sequence[Result], published: Mapping[str, Published], protocol: str, model: str
) -> Markup | None:
    """A spoke per data set, a line per method; None where there is nothing to go around.

    Drawn are zero-shot, the probe, LoRA, the best others, and the best published rows as far as
    there is room; all of them where they have a figure of every data set.
    """
    data = list(grouped(results, "data"))
    if len(data) < LEAST or importlib.util.find_spec("matplotlib") is None:
        return None
    lines = _lines(results, data)
    theirs = {
        name: {each: row.accuracy[protocol][each] / 100 for each in data}
        for name, row in published_of(published, protocol, model).items()
        if {*data} <= {*row.accuracy.get(protocol, ())}
    }
    for name in sorted(theirs, key=lambda name: -sum(theirs[name].values()))[: MOST - len(lines)]:
        lines[f"{name} (published)"] = theirs[name]
    if not lines:
        return None
    rows = {
        name: [Row(method, 0, told[name], 0, 0.0, 0) for method, told in lines.items()]
        for name in data
    }
    label = f"Radar of {protocol}, {model}: {', '.join(lines)} on {', '.join(data)}"
    return _inline(_svg(rows), f"{protocol}-{model}-", label)


def _lines(results: Sequence[Result], data: Sequence[str]) -> dict[str, dict[str, float]]:
    """Method -> data set -> mean score, of the methods to draw."""
    whole, methods = {}, grouped(results)
    for method, own in methods.items():
        told = grouped(own, "data")
        if {*told} == {*data}:
            whole[method] = {name: mean(map(score, told[name])) for name in data}
    ranked = sorted(whole, key=lambda method: -over_tasks(methods[method]))
    fixed = [method for method in (ZERO_SHOT, PROBE, LORA) if method in whole]
    best = [method for method in ranked if method not in fixed][:BEST]
    return {method: whole[method] for method in (*fixed, *best)}


def _svg(rows: Mapping[str, Sequence[Row]]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axis: Any = figure.add_subplot(projection="polar")
    methods = [row.method for row in next(iter(rows.values()))]
    # a dollar sign would begin mathematics
    draw_radar(rows, axis, {method: method.replace("$", r"\$") for method in methods})
    axis.legend(frameon=False, fontsize=10, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    for place, text in enumerate(axis.get_xticklabels()):
        around = place / len(rows)  # from the top, to the left
        side = "right" if around < 0.5 else "left"
        text.set_horizontalalignment("center" if around in (0, 0.5) else side)
    axis.set_rlabel_position(180 / len(rows))  # between two spokes
    axis.set_yticks([0.2, 0.4, 0.6, 0.8], ["20", "40", "60", "80 %"], fontsize=9)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "radar"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _inline(svg: str, prefix: str, label: str) -> Markup:
    """An SVG file of matplotlib as a part of a page, with names and colours of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", svg)
    head, rest = svg.split(">", 1)
    svg = re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + rest
    place = re.sub(r"[^\w-]", "_", prefix)
    svg = re.sub(r'\bid="', f'id="{place}', svg)
    svg = re.sub(r'(xlink:)?href="#', f'href="#{place}', svg)
    svg = svg.replace("url(#", f"url(#{place}")
    for color, paint in _PAINT.items():
        svg = re.sub(rf"(fill|stroke): {color}\b", rf"\1: var({paint})", svg, flags=re.IGNORECASE)
    told = Markup('<svg role="img" class="radar" aria-label="{}"').format(label)
    return Markup(svg.replace("<svg", told, 1))  # matplotlib escapes the names in it
