"""Which components moved one image to another class, or made a class head say its class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifiers.heads.head import by_unit, contrast
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.images import ImageLike
from ..errors import ResiDualError, some
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit
from .head import check_rows, explained_head, text_of
from .movement import (
    Moved,
    centred_classes,
    coordinates_of_image,
    exact_state,
    gains_per_component,
    strongest_of,
)


@dataclass(frozen=True)
class ImageExplanation:
    """Which components moved one image from one class to another.

    The margin is the logit of `to_class` minus that of `from_class`; its change is the sum of
    `effects`, `rescaling` and `settings`.

    Attributes:
        from_class: the class that the unadapted model chose, unless another was asked for.
        to_class: the class that the adapted model chose, or its next one where that is the same.
        margin_before: of the unadapted model.
        margin_after: of the adapted model.
        effects: (K,), of each component.
        rescaling: of the change of the readout's length.
        settings: of what the adapter's settings drop whatever the gains.
        units: the adapted units.
        counts: components of each.
        gains: λ (K,).
        coordinates: c (K,) of the image.
        per_unit: whether the adapter has one gain per unit, and no components of its own.
    """

    from_class: str
    to_class: str
    margin_before: float
    margin_after: float
    effects: Tensor
    rescaling: float
    settings: float
    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    gains: Tensor
    coordinates: Tensor
    per_unit: bool = False

    def strongest(self, count: int = 10) -> list[tuple[Unit, int | None, float, float]]:
        """(unit, component, gain, effect) of those with the largest effects.

        Of an adapter with one gain per unit, the component is None and the effect the unit's.
        """
        found = strongest_of(self.effects, self.units, self.counts, self.per_unit, count)
        return [(unit, k, float(self.gains[column]), effect) for unit, k, column, effect in found]


def explain_row(
    classifier: ZeroShotClassifier,
    rows: Coordinates | CoordinateStore,
    index: int,
    *,
    from_class: str | None = None,
    to_class: str | None = None,
    adapter_name: str | None = None,
) -> ImageExplanation:
    """Say which components moved one image of a data set from one class to another.

    Args:
        classifier: its model has the adapter that the coordinates are of.
        rows: the coordinates.
        index: which image.
        from_class: None for the class that the unadapted model chose.
        to_class: None for the class that the adapted model chose, or its next one where that is
            `from_class`.
        adapter_name: None for the active adapter.

    Raises:
        ResiDualError: no such image or class, one class twice, or coordinates of another adapter.
    """
    one = _row(rows, index)
    gains = gains_per_component(classifier, rows, adapter_name)
    state = exact_state(one.state)
    seen, weights = Moved(one, gains, state), centred_classes(classifier)
    before, after = (seen.before @ weights.T)[0], (seen.after @ weights.T)[0]
    names = classifier.class_names
    start = _class(names, from_class, before)
    end = _class(names, to_class, after, start)
    if end == start:
        raise ResiDualError(f"wanted two classes to compare, got {names[start]!r} twice.")
    against = weights[end] - weights[start]
    along = state.directions @ against
    coordinates = one.coordinates[0].double()
    return ImageExplanation(
        from_class=names[start],
        to_class=names[end],
        margin_before=float(before[end] - before[start]),
        margin_after=float(after[end] - after[start]),
        effects=(gains - 1) * coordinates * along / seen.length[0],
        rescaling=float(seen.rescaling[0] @ against),
        settings=float(seen.settings[0] @ against),
        units=one.state.settings.units,
        counts=one.state.counts,
        gains=gains,
        coordinates=coordinates,
        per_unit=one.state.settings.per_unit,
    )


def explain_image(
    classifier: ZeroShotClassifier,
    image: ImageLike,
    *,
    from_class: str | None = None,
    to_class: str | None = None,
    adapter_name: str | None = None,
) -> ImageExplanation:
    """`explain_row` for an image: a PIL image, a path, an array or a tensor.

    Raises:
        ResiDualError: as `explain_row`, or an image that cannot be read.
    """
    return explain_row(
        classifier,
        coordinates_of_image(classifier, image, adapter_name),
        0,
        from_class=from_class,
        to_class=to_class,
        adapter_name=adapter_name,
    )


@dataclass(frozen=True)
class HeadImageExplanation:
    """What made a class head say one class of an image rather than another.

    The margin is the logit of `this_class` minus that of `other_class`: the sum of `effects`,
    `constant` and `text`.

    Attributes:
        this_class: the likeliest of the head's classes, unless another was asked for.
        other_class: the next one.
        margin: see above.
        effects: (K,), of each component.
        constant: what is said of every image.
        text: of the texts.
        units: the adapted units.
        counts: components of each.
        centred: c (K,) of the image, less the mean of the images of the fit.
        per_unit: whether the adapter keeps no components of its own.
    """

    this_class: str
    other_class: str
    margin: float
    effects: Tensor
    constant: float
    text: float
    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    centred: Tensor
    per_unit: bool = False

    def by_unit(self) -> list[tuple[Unit, float]]:
        """The effect of every unit, in the order of the tower."""
        sums = by_unit(self.effects, self.counts).tolist()
        return list(zip(self.units, sums, strict=True))

    def strongest(self, count: int = 10) -> list[tuple[Unit, int | None, float]]:
        """(unit, component, effect) of those with the largest effects, whatever their sign.

        Where the adapter keeps no components, the component is None and the effect the unit's.
        """
        found = strongest_of(self.effects, self.units, self.counts, self.per_unit, count)
        return [(unit, number, effect) for unit, number, _, effect in found]


def explain_head_row(
    classifier: ZeroShotClassifier,
    rows: Coordinates | CoordinateStore,
    index: int,
    *,
    this_class: str | None = None,
    other_class: str | None = None,
) -> HeadImageExplanation:
    """Say which components made a class head say one class of an image rather than another.

    These are the likeliest of the head's classes, unless others are named; the head reads the
    coordinates of the classifier's active adapter.

    Raises:
        ResiDualError: no such image or class, one class twice, a head of one class or one that
            reads no coordinates, or coordinates of another adapter.
    """
    one = _row(rows, index)
    head = explained_head(classifier)
    check_rows(rows, head)
    names = classifier.class_names[: head.class_count]
    features, text = one.coordinates.double(), text_of(classifier, one, head)
    logits = (head.temperature * head.scores(features) + text)[0]
    named = -1 if other_class is None else _class(names, other_class, logits)
    if len(names) < 2 and (this_class is None or other_class is not None):
        raise ResiDualError(f"wanted two classes to compare, the class head knows {len(names)}.")
    this = _class(names, this_class, logits, named)
    other = _class(names, other_class, logits, this)
    if this == other:
        raise ResiDualError(f"wanted two classes to compare, got {names[this]!r} twice.")
    return HeadImageExplanation(
        this_class=names[this],
        other_class=names[other],
        margin=float(logits[this] - logits[other]),
        effects=contrast(head, features, this, other)[0],
        constant=head.temperature * float(head.offset[this] - head.offset[other]),
        text=float(text[0, this] - text[0, other]),
        units=one.state.settings.units,
        counts=tuple(one.state.counts),
        centred=features[0] - head.mean,
        per_unit=one.state.settings.per_unit,
    )


def explain_head_image(
    classifier: ZeroShotClassifier,
    image: ImageLike,
    *,
    this_class: str | None = None,
    other_class: str | None = None,
) -> HeadImageExplanation:
    """`explain_head_row` for an image: a PIL image, a path, an array or a tensor.

    Raises:
        ResiDualError: as `explain_head_row`, or an image that cannot be read.
    """
    explained_head(classifier)  # says before any work what is amiss
    rows = coordinates_of_image(classifier, image)
    return explain_head_row(classifier, rows, 0, this_class=this_class, other_class=other_class)


def _row(rows: Coordinates | CoordinateStore, index: int) -> Coordinates:
    """One of the images, on the CPU."""
    if not 0 <= index < len(rows):
        raise ResiDualError(f"wanted an image from 0 to {len(rows) - 1}, got {index}.")
    return rows.rows(torch.tensor([index])).to("cpu")


def _class(names: tuple[str, ...], name: str | None, logits: Tensor, but: int = -1) -> int:
    """Which class has a name; without one the likeliest, but one where there are others."""
    if name is None:
        order = logits.argsort(descending=True, stable=True).tolist()
        return ([number for number in order if number != but] or order)[0]
    if name not in names:
        known = f"{len(names)}: {some(names, 10)}"
        raise ResiDualError(f"there is no class {name!r}; there are {known}.")
    return names.index(name)
