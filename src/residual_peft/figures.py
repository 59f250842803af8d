"""Numbers -> pictures, drawn without pyplot; matplotlib is imported once one is drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from .anatomy import Unit
from .errors import ResiDualError
from .files import PathLike, atomic_file


def gains_by_place(gains: Mapping[Unit, Sequence[float]]) -> tuple[np.ndarray, list[str]]:
    """Mean gain of each unit, by layer (rows) and head or MLP (columns).

    Args:
        gains: unit -> its gains; units without a layer are left out.

    Returns:
        (layers, columns) means with NaN where nothing is adapted, and the columns' names.

    Raises:
        ResiDualError: no unit has a layer (RD^y has one gain per dimension of the readout).
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
        grid[unit.layer, column] = float(np.mean(values)) if len(values) else np.nan
    return grid, columns


def gains_figure(gains: Mapping[Unit, Sequence[float]], path: PathLike, *, title: str = "") -> None:
    """Write a PNG: mean gain of every unit by layer and head, and how all gains spread.

    Drawn without pyplot, so that nothing global changes and any thread may call it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    grid, columns = gains_by_place(gains)
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
                left.text(column, layer, f"{value:.2f}", ha="center", va="center", color=color,
                          fontsize=8)  # fmt: skip
    figure.colorbar(picture, ax=left, shrink=0.9)
    everything = np.concatenate([np.asarray(values, float) for values in gains.values()])
    right.hist(everything, bins=40, color="#4878a8")
    right.axvline(1, color="black", linewidth=1, linestyle="--")
    right.set(xlabel="gain", ylabel="components", title=f"All {everything.size:,} gains")
    if title:
        figure.suptitle(title)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
