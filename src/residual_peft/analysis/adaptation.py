"""What an adapter's gains did to the logits: which components moved them, by how much, to what end.

Exact, since the readout is a sum: see `movement` for the formula.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifiers.figures import mean_gain
from ..classifiers.heads.head import by_unit
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import ONE_LABEL
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit
from ..tuner import adapter_basis
from .movement import Moved, centred_classes, chunks, exact_state, gains_per_component, place_of


@dataclass(frozen=True)
class ComponentEffect:
    """One component of an adapter and what its gain did.

    Attributes:
        unit: whose component.
        component: its number within the unit, 0 the one with the most variance; None for a whole
            unit, of an adapter with one gain per unit.
        gain: λ.
        variance: mean square of its coordinate over the images.
        share: of the squared change of all logits; negative where it worked against the change.
        toward_label: mean change of the label's logit against the mean of all classes.
    """

    unit: Unit
    component: int | None
    gain: float
    variance: float
    share: float
    toward_label: float


@dataclass(frozen=True)
class UnitEffect:
    """The sums over a unit's components: see `ComponentEffect`.

    Attributes:
        unit: which.
        components: how many it has.
        mean_gain: over its components, weighted by their variance in the basis.
        share: of the squared change of all logits.
        toward_label: mean change of the label's logit against the mean of all classes.
    """

    unit: Unit
    components: int
    mean_gain: float
    share: float
    toward_label: float


@dataclass(frozen=True)
class AdapterExplanation:
    """What K gains did to the logits of N images.

    Logits count from their mean over the classes, which no decision depends on. D (N, C) is their
    change; the share of a part D_k of it is ⟨D_k, D⟩ / ⟨D, D⟩, so that all shares, those of the
    rescaling and the settings included, add up to 1; where nothing changed they are all 0.

    Attributes:
        units: the adapted units.
        counts: components of each.
        gains: λ (K,), float64; where a unit has one gain, it stands at each of its components.
        variance: (K,), mean square of each coordinate.
        share: (K,), of the squared change.
        toward_label: (K,), mean change of the label's logit.
        rescaling_share: of the change of the readouts' length.
        settings_share: of what the adapter's settings drop whatever the gains; 0 for the default.
        rescaling_toward_label: as `toward_label`.
        settings_toward_label: as `toward_label`.
        change: root mean square of D, in units of a logit.
        images: N.
        per_unit: whether the adapter has one gain per unit, and no components of its own.
        eigenvalues: variance along each component in the basis (K,); None with `per_unit`.
    """

    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    gains: Tensor
    variance: Tensor
    share: Tensor
    toward_label: Tensor
    rescaling_share: float
    settings_share: float
    rescaling_toward_label: float
    settings_toward_label: float
    change: float
    images: int
    per_unit: bool = False
    eigenvalues: Tensor | None = None

    def component(self, index: int) -> ComponentEffect:
        """The effect of one of the K components."""
        place, number = place_of(index, self.counts)
        columns = (self.gains, self.variance, self.share, self.toward_label)
        return ComponentEffect(
            self.units[place], number, *(float(values[index]) for values in columns)
        )

    def strongest(self, count: int = 10) -> list[ComponentEffect]:
        """The components, or whole units, with the largest shares, whatever their sign."""
        if self.per_unit:
            sums = by_unit(self.variance, self.counts).tolist()
            found = [
                ComponentEffect(e.unit, None, e.mean_gain, variance, e.share, e.toward_label)
                for e, variance in zip(self.by_unit(), sums, strict=True)
            ]
            return sorted(found, key=lambda effect: -abs(effect.share))[:count]
        order = self.share.abs().argsort(descending=True, stable=True)
        return [self.component(int(index)) for index in order[:count]]

    def by_unit(self) -> list[UnitEffect]:
        """The effect of every unit, in the order of the tower."""
        weights = torch.ones_like(self.gains) if self.eigenvalues is None else self.eigenvalues
        columns = [
            tensor.split(list(self.counts))
            for tensor in (self.gains, weights, self.share, self.toward_label)
        ]
        return [
            UnitEffect(
                unit=unit,
                components=len(gains),
                mean_gain=mean_gain(gains, variance),
                share=float(share.sum()),
                toward_label=float(toward.sum()),
            )
            for unit, gains, variance, share, toward in zip(self.units, *columns, strict=True)
        ]


def explain_adapter(
    classifier: ZeroShotClassifier,
    rows: Coordinates | CoordinateStore,
    adapter_name: str | None = None,
) -> AdapterExplanation:
    """Divide the change of the logits of some images among an adapter's components, exactly.

    Args:
        classifier: its model has the adapter that the coordinates are of.
        rows: from `collect_coordinates` or `write_coordinates`; labels of one class per image.
        adapter_name: None for the active adapter.

    Raises:
        ResiDualError: coordinates of another adapter, or labels outside the classes.
    """
    ONE_LABEL.check(rows.labels, len(classifier.class_names))
    gains = gains_per_component(classifier, rows, adapter_name)
    weights = centred_classes(classifier)
    state = exact_state(rows.state)
    directions = state.directions
    along_change = torch.zeros_like(directions)
    along_label = torch.zeros_like(directions)
    squares = torch.zeros(len(directions), dtype=torch.float64)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in ("rescaling", "settings")}
    total = 0.0
    for part in chunks(rows):
        seen = Moved(part, gains, state)
        change = (seen.after - seen.before) @ weights.T  # D (n, C)
        own = weights[part.labels]
        c = part.coordinates.double()
        along_change += c.T @ (change @ weights / seen.length)
        along_label += c.T @ (own / seen.length)
        squares += c.square().sum(0)
        total += float(change.square().sum())
        for name, moved in (("rescaling", seen.rescaling), ("settings", seen.settings)):
            sums[name][0] += (change * (moved @ weights.T)).sum()
            sums[name][1] += (own * moved).sum()
    offset, count = gains - 1, len(rows)
    per_unit, eigenvalues = rows.state.settings.per_unit, None
    if not per_unit:
        basis = adapter_basis(classifier.model, adapter_name)
        eigenvalues = torch.cat(basis.eigenvalues).double()
    scale = total or 1.0
    return AdapterExplanation(
        units=state.settings.units,
        counts=state.counts,
        gains=gains,
        variance=squares / count,
        share=offset * (along_change * directions).sum(1) / scale,
        toward_label=offset * (along_label * directions).sum(1) / count,
        rescaling_share=float(sums["rescaling"][0]) / scale,
        settings_share=float(sums["settings"][0]) / scale,
        rescaling_toward_label=float(sums["rescaling"][1]) / count,
        settings_toward_label=float(sums["settings"][1]) / count,
        change=(total / count / len(weights)) ** 0.5,
        images=count,
        per_unit=per_unit,
        eigenvalues=eigenvalues,
    )
