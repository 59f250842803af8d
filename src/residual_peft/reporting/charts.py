"""Small inline SVGs whose colours are the page's: light, dark and print come from its CSS.

Positions across are in percent and positions down in pixels, so that a chart fills the width that
it is given and its text keeps its size.
"""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from ..classifiers.figures import brief
from .components import UnitView
from .findings import Accuracy, Change

SHOWN_COMPONENTS = 64
_TOP, _FLOOR, _LOW, _END = 8.0, 92.0, 112.0, 188.0  # the two panels of a spectrum
_LEFT, _WIDE = 12.0, 86.0  # where its components begin, and the room they take


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; text and attribute values are escaped, `_` in a name stands for `-`.

    >>> tag("text", "a < b", class_="name", text_anchor="end")
    Markup('<text class="name" text-anchor="end">a &lt; b</text>')
    """
    pairs = (
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
    )
    inside = Markup("").join(children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("".join(pairs)), inside)


def accuracy_bar(accuracy: Accuracy, kind: str) -> Markup:
    """A bar, "before" or "after", from nothing to everything, with the interval laid over it."""
    low, high = accuracy.interval
    parts = [
        tag("rect", class_="track", x="0", y="4", width="100%", height="18", rx="2"),
        tag("rect", class_=kind, x="0", y="4", width=_percent(accuracy.value), height="18", rx="2"),
    ]
    for style in ("halo", "whisker"):  # the whisker must be seen on the bar and beside it
        parts.append(_line(low, 13, high, 13, style))
        parts += [_line(bound, 8, bound, 18, style) for bound in (low, high)]
    label = f"{accuracy.value:.1%}, 95 % interval {low:.1%} to {high:.1%}"
    return _svg("bar", 26, label, parts)


def sides_bar(change: Change) -> Markup:
    """One bar of all images: right both times, put right, gone wrong, wrong both times."""
    counts = (change.right, change.fixed, change.broken, change.wrong)
    parts, start = [], 0.0
    for kind, count in zip(("right", "fixed", "broken", "wrong"), counts, strict=True):
        width = count / change.images
        if count:
            parts.append(
                tag("rect", class_=kind, x=_percent(start), y="0", width=_percent(width),
                    height="22")
            )  # fmt: skip
        start += width
    label = "{} right both times, {} put right, {} gone wrong, {} wrong both times".format(*counts)
    return _svg("bar sides", 22, label, parts)


def dumbbell(was: float, now: float) -> Markup:
    """A ring for before, a dot for after, and the way between them."""
    way = "worse" if now < was else "better"
    parts = [_line(at, 0, at, 20, "grid") for at in (0.0, 0.5, 1.0)]
    parts += [
        _line(was, 10, now, 10, f"way {way}"),
        tag("circle", class_="ring", cx=_percent(was), cy="10", r="4.5"),
        tag("circle", class_=f"dot {way}", cx=_percent(now), cy="10", r="5"),
    ]
    return _svg("dumbbell", 20, f"from {was:.0%} to {now:.0%}", parts)


def spectrum(view: UnitView) -> Markup:
    """The eigenvalues of a unit on a log scale, and below each the gain of its component."""
    assert view.eigenvalues is not None
    values = view.eigenvalues[:SHOWN_COMPONENTS] / view.eigenvalues.max()
    gains = view.gains[: len(values)]
    known = values[values > 1e-6]
    decades = max(1, math.ceil(-math.log10(float(known.min())) - 1e-9))
    places = [(_LEFT + _WIDE * (i + 0.5) / len(values)) / 100 for i in range(len(values))]
    parts: list[Markup] = []
    for power in range(0, decades + 1, 1 if decades <= 3 else 2):
        y = _TOP + (_FLOOR - _TOP) * power / decades
        parts += _gridline(y, f"{10.0**-power:g}" if power < 5 else f"1e−{power}")
    for place, value in zip(places, values, strict=True):
        depth = min(-math.log10(max(float(value), 1e-9)), decades)
        y = _TOP + (_FLOOR - _TOP) * depth / decades
        parts.append(_line(place, _FLOOR, place, y, "eigenvalue"))
    parts += _gain_panel(places, gains)
    label = (
        f"{len(values)} eigenvalues falling to {float(values.min()):.1g} of the first; gains from "
        f"{float(gains.min()):.2f} to {float(gains.max()):.2f}"
    )
    return _svg("spectrum", 196, label, parts)


def _gain_panel(places: Sequence[float], gains: np.ndarray) -> list[Markup]:
    reach = max(float(np.abs(gains - 1).max()), 1e-3)
    middle, half = (_LOW + _END) / 2, (_END - _LOW) / 2
    parts = _gridline(_LOW, brief(1 + reach, 1)) + _gridline(_END, brief(1 - reach, 1))
    parts += _gridline(middle, "1")
    for index, (place, gain) in enumerate(zip(places, gains, strict=True)):
        way = "up" if gain >= 1 else "down"
        y = middle - half * (float(gain) - 1) / reach
        parts.append(
            tag(
                "g",
                tag("title", f"component {index}: gain {gain:.3f}"),
                _line(place, middle, place, y, f"gain {way}"),
                tag("circle", class_=f"gain {way}", cx=_percent(place), cy=f"{y:.1f}", r="2"),
            )
        )
    return parts


def diverging(value: float | None, reach: float, middle: float = 1.0) -> str:
    """The class of a colour on both sides of the middle: "d0" far below, "d4" there, "d8" above.

    >>> diverging(1.0, 0.5), diverging(0.5, 0.5), diverging(1.3, 0.5), diverging(None, 0.5)
    ('d4', 'd0', 'd6', 'none')
    """
    if value is None:
        return "none"
    return f"d{min(8, max(0, 4 + round(4 * (value - middle) / reach)))}"


def sequential(value: float | None, top: float) -> str:
    """The class of a colour from nothing, "s0", to `top`, "s6"; anything at all is at least "s1".

    >>> sequential(0, 10), sequential(0.1, 10), sequential(10, 10), sequential(None, 10)
    ('s0', 's1', 's6', 'none')
    """
    if value is None:
        return "none"
    return "s0" if value <= 0 or top <= 0 else f"s{min(6, max(1, math.ceil(6 * value / top)))}"


def _svg(kind: str, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    title = tag("title", label.replace("%", " %").replace("  %", " %"))
    return tag("svg", title, *parts, class_=kind, role="img", width="100%", height=f"{height:g}")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return tag(
        "line", class_=kind, x1=_percent(x1), y1=f"{y1:.1f}", x2=_percent(x2), y2=f"{y2:.1f}"
    )


def _gridline(y: float, text: str) -> list[Markup]:
    return [
        tag("line", class_="grid", x1=_percent(_LEFT / 100), x2="100%", y1=f"{y:.1f}",
            y2=f"{y:.1f}"),
        tag("text", text, class_="tick", x=_percent(_LEFT / 100 - 0.015), y=f"{y + 3.5:.1f}",
            text_anchor="end"),
    ]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
