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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..coordinates import Coordinates
from ..errors import ResiDualError
from ..store import CoordinateStore
from ..tuner import compose, gains_of
from ..zero_shot import ZeroShotClassifier


@dataclass(frozen=True)
class Moved:
    """The parts of the way from y/‖y‖ to y'/‖y'‖ of n images, (n, d) each, float64."""

    before: Tensor  # y/‖y‖
    after: Tensor  # y'/‖y'‖
    rescaling: Tensor  # y (1/‖y'‖ − 1/‖y‖)
    settings: Tensor  # (y¹ − y)/‖y'‖
    length: Tensor  # ‖y'‖ (n, 1)

    @classmethod
    def of(cls, rows: Coordinates, gains: Tensor) -> "Moved":
        """At gains that stand at each component, (K,)."""
        state = rows.state.map(
            lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
        )
        # one gain per component from here on, whatever the adapter has
        state = replace(state, settings=replace(state.settings, per_unit=False))
        whole = replace(
            rows,
            readout=rows.readout.double(),
            coordinates=rows.coordinates.double(),
            state=state,
        )
        # the settings of the adapter itself: `constant` was derived with them
        base, y = whole.base, whole.readout
        moved = compose(state, base, whole.coordinates, gains)
        at_one = compose(state, base, whole.coordinates, torch.ones_like(gains))
        length = moved.norm(dim=1, keepdim=True)
        own = y.norm(dim=1, keepdim=True)
        return cls(
            before=y / own,
            after=moved / length,
            rescaling=y / length - y / own,
            settings=(at_one - y) / length,
            length=length,
        )


def gains_per_component(
    classifier: ZeroShotClassifier, rows: Coordinates | CoordinateStore, adapter_name: str | None
) -> Tensor:
    """λ at each component, (K,), float64."""
    gains = gains_of(classifier.model, adapter_name).detach().double().cpu()
    if gains.numel() != rows.state.num_gains:
        raise ResiDualError(
            f"the coordinates are of an adapter with {rows.state.num_gains} gains, this one has "
            f"{gains.numel()}; collect them anew with collect_coordinates."
        )
    index = rows.state.gain_index.cpu()
    return gains.index_select(0, index) if rows.state.settings.per_unit else gains


def centred_classes(classifier: ZeroShotClassifier) -> Tensor:
    """s (w_c − mean w), (C, d): logits that count from their mean over the classes."""
    weights = classifier.logit_scale * classifier.class_embeddings.double().cpu()
    return weights - weights.mean(0)
