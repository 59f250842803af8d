"""What the model loses without a layer's units, or without one unit.

The complement of selection: all stays as it is but what is ablated, zeroed or put at its mean over
reference images. Ablations are of direct contributions to the readout: later layers have read what
is ablated here, so that a small drop says that a unit does not *write* the answer, not that it does
nothing.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.metrics import difference_interval
from ..errors import ResiDualError
from ..hub.files import plain_of
from ..towers.units import Unit
from .contributions import Contributions
from .subsets import Ablation, Stand, accuracy_of, correct_whole, correct_with, score_blocks

Cumulative = Literal[False, "from_first", "from_last"]


@dataclass(frozen=True)
class AblationPoint:
    """Accuracy without some units.

    Attributes:
        name: "layer 3", "layers 3-5" or a unit's name.
        units: how many were ablated.
        accuracy: without them.
        low: of Wilson's 95 % interval of it.
        high: of the same.
        drop: accuracy with all minus this; below zero where the model is better off without.
        drop_low: of the 95 % interval of the drop, on the same images.
        drop_high: of the same.
    """

    name: str
    units: int
    accuracy: float
    low: float
    high: float
    drop: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True)
class AblationCurve:
    """Accuracies without one set of units after the other.

    Attributes:
        ablation: "zero" or "mean".
        kinds: kinds of the units that were ablated.
        cumulative: False, "from_first" or "from_last".
        images: how many images were scored.
        baseline: accuracy with nothing ablated.
        points: by layer in the order in which they go, or by unit in the order of the tower.
    """

    ablation: str
    kinds: tuple[str, ...]
    cumulative: str | bool
    images: int
    baseline: float
    points: tuple[AblationPoint, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per point, its attributes as columns."""
        return [asdict(point) for point in self.points]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, with `rows` for the points."""
        found = plain_of(self)
        found["rows"] = found.pop("points")
        return found


def layer_ablation(
    test: Contributions,
    class_embeddings: Tensor,
    kinds: Iterable[str] = ("head", "mlp"),
    *,
    ablation: Ablation = "zero",
    cumulative: Cumulative = False,
    reference: Contributions | None = None,
    block: int | None = None,
) -> AblationCurve:
    """Accuracy without the units of one layer after the other, or of ever more layers.

    Args:
        test: contributions to labelled images.
        class_embeddings: (C, d).
        kinds: which units of a layer go, together: "head", "mlp".
        ablation: "zero" or "mean".
        cumulative: False for one layer at a time; "from_first" for layers 0..l, "from_last" for
            layers l and all after it.
        reference: contributions whose means stand in, for mean ablation: validation images.
        block: images at a time; None for as many as fit in 256 MB.

    Raises:
        ResiDualError: kinds without layers, unknown options, no labels, no reference where one is
            needed.
    """
    kinds = tuple(dict.fromkeys(kinds))
    if not kinds or not set(kinds) <= {"head", "mlp"}:
        raise ResiDualError(f"layers consist of 'head' and 'mlp' units, got kinds={kinds!r}.")
    if cumulative not in (False, "from_first", "from_last"):
        raise ResiDualError(
            f"wanted cumulative=False, 'from_first' or 'from_last', got {cumulative!r}."
        )
    pool, names = test.select(kinds), []
    layers = sorted({unit.layer for unit in pool.units if unit.layer is not None})
    if cumulative == "from_last":
        layers.reverse()
    kept = torch.ones(len(layers), len(pool.units), dtype=torch.bool)
    for step, layer in enumerate(layers):
        gone = [layer] if cumulative is False else sorted(layers[: step + 1])
        names.append(f"layer {layer}" if len(gone) == 1 else f"layers {gone[0]}-{gone[-1]}")
        kept[step] = torch.tensor([unit.layer not in gone for unit in pool.units])
    stand = Stand(pool, class_embeddings, ablation, "keep", reference)
    right = correct_with(pool, class_embeddings, kept, stand, block)
    sizes = (~kept).sum(1).tolist()
    whole = correct_whole(pool, class_embeddings, block)
    points = _points(whole, right, names, sizes)
    return AblationCurve(ablation, kinds, cumulative, len(whole), accuracy_of(whole)[0], points)


@torch.no_grad()
def unit_ablation(
    test: Contributions,
    class_embeddings: Tensor,
    units: Iterable[Unit | str] | None = None,
    *,
    ablation: Ablation = "zero",
    reference: Contributions | None = None,
    block: int | None = None,
) -> AblationCurve:
    """Accuracy without one unit after the other: kinds, names or `Unit`s; None for all.

    Arguments are those of `layer_ablation`.

    Raises:
        ResiDualError: unknown options, no such unit, no labels, no reference where one is needed.
    """
    pool = test.select(units)
    stand = Stand(pool, class_embeddings, ablation, "keep", reference)
    right = torch.empty(len(pool.units), len(pool), dtype=torch.bool)
    for part in score_blocks(pool, class_embeddings, block, wide=len(pool.units)):
        total = (part.scores.sum(1) + part.rest)[:, None]
        without = total - part.scores + stand.units  # (b, U, C)
        right[:, part.rows] = (without.argmax(-1) == part.labels[:, None]).T
    kinds = tuple(dict.fromkeys(unit.kind for unit in pool.units))
    whole = correct_whole(pool, class_embeddings, block)
    names, sizes = list(map(str, pool.units)), [1] * len(pool.units)
    points = _points(whole, right, names, sizes)
    return AblationCurve(ablation, kinds, False, len(whole), accuracy_of(whole)[0], points)


def _points(
    whole: Tensor, right: Tensor, names: list[str], sizes: list[int]
) -> tuple[AblationPoint, ...]:
    """Who was right, with all (N,) and without each set of units (K, N) -> a point for each set."""
    points = []
    for name, size, row in zip(names, sizes, right, strict=True):
        accuracy, low, high = accuracy_of(row)
        drop = (int(whole.sum()) - int(row.sum())) / len(whole)
        drop_low, drop_high = difference_interval(whole, row)
        points.append(AblationPoint(name, size, accuracy, low, high, drop, drop_low, drop_high))
    return tuple(points)
