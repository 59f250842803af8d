"""Numbers -> pictures, drawn without pyplot; matplotlib is imported once one is drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ResiDualError
from ..hub.files import PathLike, atomic_file
from ..towers.units import Unit


def mean_gain(gains: Sequence[float] | Any, variance: Sequence[float] | Any | None = None) -> float:
    """The gain of a unit as a whole: the mean of its gains λ (k,), weighted by what they scale.

    The variance along a component says how much of what the unit writes a gain scales. Most
    components write next to nothing: their gains may go anywhere without any effect, and a plain
    mean would be theirs; it is taken where the variance (k,) is not known, or all 0. NaN without
    components.

    >>> mean_gain([2.0, -100.0], [0.99, 0.01]), mean_gain([2.0, -100.0])
    (0.98, -49.0)
    """
    values = np.asarray(gains, float)
    if not values.size:
        return math.nan  # of a unit that writes nothing
    weights = None if variance is None else np.asarray(variance, float).clip(0)
    known = weights is not None and weights.sum() > 0
    return float(np.average(values, weights=weights if known else None))


def brief(value: float, digits: int = 2) -> str:
    """A number for a small cell, in five characters at most and a minus.

    >>> [brief(x) for x in (0.5, -6.694, 21.33, 224.31, -51234.0, 3e9, -0.001)]
    ['0.50', '−6.69', '21.3', '224', '−51k', '3e9', '0.00']
    """
    size = abs(value)
    if size < 999.5:
        kept = min(digits, 0 if size >= 99.95 else 1 if size >= 9.995 else 2)
        text = f"{value:.{kept}f}"
    elif size < 999.5e6:
        power, name = (3, "k") if size < 999.5e3 else (6, "M")
        part = value / 10**power
        text = f"{part:.{0 if abs(part) >= 9.95 else 1}f}{name}"
    else:
        text = f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    nothing = text.lstrip("-").strip("0.") == ""
    return text.replace("-", "" if nothing else "\N{MINUS SIGN}")


def gains_by_place(
    gains: Mapping[Unit, Sequence[float]], variance: Mapping[Unit, Sequence[float]] | None = None
) -> tuple[np.ndarray, list[str]]:
    """`mean_gain` of each unit, by layer (rows) and head or MLP (columns), and the columns' names.

    NaN where nothing is adapted. Units without a layer are left out, and refused where there is no
    other (RD^y has one gain per dimension of the readout).
    """
    placed = {unit: values for unit, values in gains.items() if unit.layer is not None}
    if not placed:
        raise ResiDualError("wanted gains of heads or MLPs to show by layer, got none of either.")
    layers = 1 + max(unit.layer for unit in placed if unit.layer is not None)
    heads = 1 + max((unit.head for unit in placed if unit.head is not None), default=-1)
    columns = [str(head) for head in range(heads)]
    if any(unit.kind == "mlp" for unit in placed):
        columns.append("MLP")
    grid = np.full((layers, len(columns)), np.nan)
    for unit, values in placed.items():
        column = unit.head if unit.head is not None else len(columns) - 1
        if len(values):
            grid[unit.layer, column] = mean_gain(values, (variance or {}).get(unit))
    return grid, columns


def gains_figure(
    gains: Mapping[Unit, Sequence[float]],
    path: PathLike,
    *,
    variance: Mapping[Unit, Sequence[float]] | None = None,
) -> None:
    """Write a PNG: mean gain of every unit by layer and head, and how all gains spread.

    Drawn without pyplot, so that nothing global changes and any thread may call it. The variance
    along each unit's components weights its mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    grid, columns = gains_by_place(gains, variance)
    figure = Figure(figsize=(9.5, 1.6 + 0.45 * len(grid)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    reach = max(float(np.nanmax(np.abs(grid - 1))), 1e-3)
    picture = left.imshow(
        grid, cmap="RdBu_r", norm=TwoSlopeNorm(1, 1 - reach, 1 + reach), aspect="auto"
    )
    left.set_xticks(range(len(columns)), columns)
    left.set_yticks(range(len(grid)), [str(layer) for layer in range(len(grid))])
    left.set(xlabel="head", ylabel="layer", title="Mean gain per unit (1 = unchanged)")
    if grid.size <= 200:
        for (layer, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = abs(value - 1) > 0.65 * reach
                color = "white" if dark else "black"
                left.text(column, layer, brief(value), ha="center", va="center", color=color,
                          fontsize=8)  # fmt: skip
    figure.colorbar(picture, ax=left, shrink=0.9)
    everything = np.concatenate([np.asarray(values, float) for values in gains.values()])
    right.hist(everything, bins=40, color="#4878a8")
    right.axvline(1, color="black", linewidth=1, linestyle="--")
    right.set(xlabel="gain", ylabel="components", title=f"All {everything.size:,} gains")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
