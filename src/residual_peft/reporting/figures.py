"""The paper's figures: functions that take results and a matplotlib axis, and draw on it.

    figure, axis = pyplot.subplots()
    draw_dimension(profile, axis)

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart; lines differ in
their markers, too, so that a print in grey can be read. Nothing global is changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import (
    AblationCurve,
    DimensionProfile,
    OverlapMatrix,
    SelectionStudy,
    SimilarityMatrix,
)
from ..errors import ResiDualError
from ..experiments import Row, summarize
from ..hub.files import PathLike, atomic_file

Axis = Any  # matplotlib.axes.Axes, which is imported once something is drawn
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "cividis"
KINDS = {"head": "heads", "mlp": "MLPs"}
MEASURES = {
    "linear": "linear dimension",
    "two_nn": "TwoNN dimension",
    "ratio": "linear / TwoNN",
    "first_share": "variance along the first direction",
    "participation": "participation ratio",
}
LINES = {"H": ("all heads (H)", ":"), "B": ("whole model (B)", "--"), "O": ("optimum (O)", "-.")}


def draw_dimension(
    profile: DimensionProfile, axis: Axis, measures: Sequence[str] = ("linear", "two_nn")
) -> None:
    """Dimension by layer: the mean over a layer's heads, and of its MLP.

    Measures are of "linear", "two_nn", "ratio", "first_share", "participation".

    Raises:
        ResiDualError: another measure, or no unit with a layer.
    """
    if unknown := sorted(set(measures) - set(MEASURES)):
        raise ResiDualError(f"wanted measures of {', '.join(MEASURES)}, got {', '.join(unknown)}.")
    layers = profile.by_layer()
    if not layers:
        raise ResiDualError("wanted heads or MLPs to show by layer, got none of either.")
    style = 0
    for measure in measures:
        for kind, name in KINDS.items():
            rows = [row for row in layers if row.kind == kind]
            values = np.array([getattr(row, measure) for row in rows], float)
            if not rows or np.isnan(values).all():
                continue
            axis.plot(
                [row.layer for row in rows],
                values,
                color=COLORS[style],
                marker=MARKERS[style],
                linestyle="-" if kind == "head" else "--",
                label=f"{MEASURES[measure]}, {name}" if len(measures) > 1 else name,
            )
            style = (style + 1) % len(COLORS)
    axis.set(xlabel="layer", ylabel=MEASURES[measures[0]] if len(measures) == 1 else "dimension")
    axis.set_xticks(sorted({row.layer for row in layers}))
    axis.legend(frameon=False)


def draw_similarity(matrix: SimilarityMatrix, axis: Axis, *, label_units: bool = False) -> Any:
    """Units against units as a heat map, its layers divided by lines; the image, for a colour bar.

    With `label_units`, which is for few, every unit's name is written.
    """
    values = matrix.values.numpy().copy()
    if matrix.within:
        np.fill_diagonal(values, np.nan)  # 1 by definition, and it would set the scale
    image = axis.imshow(values, cmap=HEAT, interpolation="nearest")
    for units, ticks, line in (
        (matrix.others, axis.set_xticks, axis.axvline),
        (matrix.units, axis.set_yticks, axis.axhline),
    ):
        layers = [unit.layer for unit in units]
        starts = [i for i, layer in enumerate(layers) if i == 0 or layer != layers[i - 1]]
        if label_units:
            ticks(range(len(units)), [str(unit) for unit in units], fontsize=6)
        else:
            ends = [*starts[1:], len(units)]
            middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
            ticks(middles, [str(layers[i]) if layers[i] is not None else "–" for i in starts])
        for start in starts[1:]:
            line(start - 0.5, color="white", linewidth=0.7)
    if label_units:
        axis.tick_params(axis="x", rotation=90)
    else:
        axis.set(xlabel="layer", ylabel="layer")
    axis.set_title(matrix.measure)
    return image


def draw_overlap(matrix: OverlapMatrix, axis: Axis) -> Any:
    """Jaccard overlap of the units chosen for several tasks, its values written in.

    Gives the image, for a colour bar.
    """
    values = np.array(matrix.values, float)
    image = axis.imshow(values, cmap=HEAT, vmin=0, vmax=1)
    axis.set_xticks(range(len(values)), matrix.names, rotation=45, ha="right")
    axis.set_yticks(range(len(values)), matrix.names)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value < 0.55 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    return image


def draw_selection(study: SelectionStudy, axis: Axis) -> None:
    """Accuracy by the number of heads that are kept: one line per method, H, B and O as levels.

    The band around the random choice is one standard deviation over its draws.
    """
    names = {"S": "by own accuracy (S)", "U": "by agreement with the output (U)"}
    names |= {"U|T": "by agreement in task space (U|T)", "R": "at random (R)"}
    for index, curve in enumerate(study.curves):
        points = curve.points
        units = [point.units for point in points]
        values = np.array([point.accuracy for point in points])
        color = COLORS[6] if curve.letter == "R" else COLORS[index]
        axis.plot(
            units,
            values,
            color=color,
            marker=MARKERS[index % len(MARKERS)],
            label=names.get(curve.letter, curve.letter),
        )
        if all(point.spread is not None for point in points):
            spread = np.array([point.spread for point in points])
            axis.fill_between(units, values - spread, values + spread, color=color, alpha=0.15)
    for line in study.lines:
        label, dash = LINES[line.letter]
        axis.axhline(line.accuracy, color="0.35", linestyle=dash, linewidth=1, label=label)
    axis.set_xscale("log")
    kept = sorted({point.units for curve in study.curves for point in curve.points})
    axis.set_xticks(kept, [str(count) for count in kept])
    axis.set_xticks([], minor=True)
    axis.set(xlabel="heads kept", ylabel="accuracy on test images", ylim=(0, 1.02))
    # below: lines may go anywhere above
    axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)


def draw_ablation(curve: AblationCurve, axis: Axis) -> None:
    """Accuracy without each layer's units, with 95 % intervals, and the accuracy with all."""
    points = curve.points
    values = np.array([point.accuracy for point in points])
    low = values - np.array([point.low for point in points])
    high = np.array([point.high for point in points]) - values
    axis.errorbar(
        range(len(points)),
        values,
        yerr=np.clip([low, high], 0, None),
        color=COLORS[0],
        marker="o",
        capsize=3,
        linestyle="-" if curve.cumulative else "none",
        label=f"{curve.ablation} ablation",
    )
    axis.axhline(curve.baseline, color="0.35", linestyle="--", linewidth=1, label="nothing ablated")
    names = [point.name.removeprefix("layers ").removeprefix("layer ") for point in points]
    axis.set_xticks(range(len(points)), names, rotation=45 if len(points) > 12 else 0)
    what = "layers ablated" if curve.cumulative else "layer ablated"
    axis.set(xlabel=what, ylabel="accuracy on test images", ylim=(0, 1.02))
    axis.legend(frameon=False)


def draw_radar(
    results: Mapping[str, Sequence[Row]], axis: Axis, labels: Mapping[str, str] | None = None
) -> None:
    """Radar of methods: a spoke per task, a closed line per method, accuracy from the middle out.

    The means over seeds are drawn, on a polar axis: `figure.add_subplot(projection="polar")`.

    Raises:
        ResiDualError: fewer than three tasks, an axis that is not polar, or tasks with different
            methods.
    """
    if axis.name != "polar":
        raise ResiDualError(f"wanted a polar axis for a radar, got a {axis.name} one.")
    if len(results) < 3:
        raise ResiDualError(f"wanted at least three tasks for a radar, got {len(results)}.")
    found = {
        task: {item.method: item.accuracy for item in summarize(rows)}
        for task, rows in results.items()
    }
    methods = list(next(iter(found.values())))
    if bad := [task for task, scores in found.items() if set(scores) != set(methods)]:
        raise ResiDualError(f"wanted the same methods on all tasks, '{bad[0]}' has others.")
    angles = np.linspace(0, 2 * np.pi, len(found), endpoint=False)
    around = np.append(angles, angles[0])
    for index, method in enumerate(methods):
        values = [scores[method] for scores in found.values()]
        axis.plot(
            around,
            [*values, values[0]],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=("-", "--", ":", "-.")[index % 4],
            markersize=4,
            label=(labels or {}).get(method, method),
        )
    axis.set_xticks(angles, list(found))
    axis.set_ylim(0, 1)
    axis.set_theta_zero_location("N")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.05, 1.05))


def save_figure(
    path: PathLike, draw: Any, *, size: tuple[float, float] = (6.4, 4.2), polar: bool = False
) -> None:
    """Write a PNG, whole or not at all, without pyplot, so that any thread may call it.

    `draw` is called with the axis; an image that it returns gets a colour bar. `size` is in inches,
    at 150 dots per inch; a heat map has less, as it is square.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axis = figure.add_subplot(projection="polar" if polar else None)
    image = draw(axis)
    if image is not None:
        figure.colorbar(image, ax=axis, shrink=0.85)
    with atomic_file(path) as temporary:
        # a heat map is square, and leaves a margin, which goes
        tight = None if image is None else "tight"
        figure.savefig(temporary, dpi=150, format="png", bbox_inches=tight)
