"""The way of some readouts from before an adapter to after it, in parts that add up.

With λ the gains, c and Φ the coordinates and directions, y and y' the readouts before and after,
and y¹ the readout where every gain is 1 (y itself unless the settings drop something),

    y' = y¹ + Σ_k (λ_k − 1) c_k φ_k

so a change of a logit is a sum over components. The classifier divides by the length of the
readout; that is one more term, and nothing is approximated:

    s w·(y'/‖y'‖ − y/‖y‖) = Σ_k s (λ_k − 1) c_k φ_k·w / ‖y'‖          the components
                          + s w·y (1/‖y'‖ − 1/‖y‖)                    the rescaling
                          + s w·(y¹ − y) / ‖y'‖                       the settings
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from ..classifiers.heads.head import by_unit
from ..classifiers.outputs import pixel_batches
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.images import ImageLike
from ..errors import ResiDualError
from ..solvers.coordinates import Coordinates, collect_coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit
from ..tuner import Gains, ReadoutState, base_of, compose, gains_of

CHUNK = 1024  # images per product


class Moved:
    """The parts of the way from y/‖y‖ to y'/‖y'‖ of n images, (n, d) each, float64.

    At gains that stand at each component, (K,); `state` is `exact_state` of the rows'.
    """

    def __init__(self, rows: Coordinates, gains: Tensor, state: ReadoutState) -> None:
        y, c = rows.readout.double(), rows.coordinates.double()
        # the settings of the adapter itself: `constant` was derived with them
        base = base_of(state, y)
        moved = compose(state, base, c, gains)
        at_one = compose(state, base, c, torch.ones_like(gains))
        self.length = moved.norm(dim=1, keepdim=True)  # ‖y'‖ (n, 1)
        self.before = y / y.norm(dim=1, keepdim=True)
        self.after = moved / self.length
        self.rescaling = y / self.length - self.before  # y (1/‖y'‖ − 1/‖y‖)
        self.settings = (at_one - y) / self.length  # (y¹ − y)/‖y'‖


def chunks(rows: Coordinates | CoordinateStore) -> Iterator[Coordinates]:
    """Some images at a time, on the CPU."""
    for part in rows.parts:
        here = part.to("cpu")
        for index in torch.arange(len(here)).split(CHUNK):
            yield here.rows(index)


def place_of(index: int, counts: Sequence[int]) -> tuple[int, int]:
    """Unit and number within it of one of the K components.

    >>> place_of(5, (3, 4))
    (1, 2)
    """
    ends = list(accumulate(counts))
    unit = bisect_right(ends, index)
    return unit, index - (ends[unit] - counts[unit])


def strongest_of(
    effects: Tensor, units: Sequence[Unit], counts: Sequence[int], per_unit: bool, count: int
) -> list[tuple[Unit, int | None, int, float]]:
    """Unit, component, column and effect of those with the largest effects, whatever their sign.

    Where the adapter keeps no components (`per_unit`), the component is None, the effect the
    unit's, and the column its first.
    """
    values = by_unit(effects, counts) if per_unit else effects
    found: list[tuple[Unit, int | None, int, float]] = []
    for index in values.abs().argsort(descending=True, stable=True)[:count].tolist():
        place, number = (index, None) if per_unit else place_of(index, counts)
        column = sum(counts[:index]) if per_unit else index
        found.append((units[place], number, column, float(values[index])))
    return found


def coordinates_of_image(
    classifier: ZeroShotClassifier, image: ImageLike, adapter_name: str | None = None
) -> Coordinates:
    """Of one image: a PIL image, a path, an array or a tensor."""
    batch = next(pixel_batches([image], classifier.image_processor, 1))
    batch["labels"] = torch.zeros(1, dtype=torch.int64)
    return collect_coordinates(classifier.model, [batch], adapter_name=adapter_name)


def exact_state(state: ReadoutState) -> ReadoutState:
    """The adapter's in float64 on the CPU, with one gain per component whatever the adapter has."""
    exact = state.map(lambda t: t.cpu().double() if t.is_floating_point() else t.cpu())
    return replace(exact, gains=Gains(exact.gains.counts, exact.gains.neutral, exact.gains.unit_of))


def gains_per_component(
    classifier: ZeroShotClassifier, rows: Coordinates | CoordinateStore, adapter_name: str | None
) -> Tensor:
    """λ at each component, (K,), float64."""
    gains = gains_of(classifier.model, adapter_name).detach().double().cpu()
    kind = rows.state.gains
    if not kind.scales:
        raise ResiDualError(
            f"the adapter's gains are {type(kind).__name__}, which scale no coordinates: what they "
            "did is not told. Look at one with granularity='component' or 'unit'."
        )
    if gains.numel() != kind.number:
        raise ResiDualError(
            f"the coordinates are of an adapter with {kind.number} gains, this one has "
            f"{gains.numel()}; collect them anew with collect_coordinates."
        )
    return kind.map(Tensor.cpu).spread(gains)


def centred_classes(classifier: ZeroShotClassifier) -> Tensor:
    """s (w_c − mean w), (C, d): logits that count from their mean over the classes."""
    weights = classifier.logit_scale * classifier.class_embeddings.double().cpu()
    return weights - weights.mean(0)
