"""What a class head says: which units and components speak for which class, in sums that are exact.

A head on coordinates is linear, so that its logits divide among the columns with nothing left over:

    logit_k = Σ_j τ (c_j − mean_j) / scale_j V_jk    the components
            + τ m_k                                  the same for every image
            + a z_k                                  the texts

As no decision depends on what all classes gain alike, all of it counts from its mean over classes.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from ..classifiers.heads.head import ClassHead, by_unit, strongest
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import ONE_LABEL
from ..errors import ResiDualError
from ..hub.files import Count, Within
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit
from ..tuner import gains_of
from .movement import chunks, place_of, strongest_of


@dataclass(frozen=True)
class ComponentShare:
    """One component, or one unit as a whole, and what a class head makes of it.

    Attributes:
        unit: whose component.
        component: its number within the unit, 0 the one with the most variance; None for the unit.
        share: of how the logits vary over the images; negative where it worked against the rest.
        toward_label: mean of what it adds to the label's logit against the mean of all classes.
    """

    unit: Unit
    component: int | None
    share: float
    toward_label: float


@dataclass(frozen=True)
class Reason:
    """A component that speaks for a class, or against it, in images of that class.

    Attributes:
        unit: whose component.
        component: its number within the unit; None for the unit as a whole.
        effect: mean of what it adds to the class's logit there, against the mean of all classes.
        side: 1 where these images lie along the component's direction, seen from the mean training
            image, −1 where they lie against it; 0 for a whole unit.
    """

    unit: Unit
    component: Count | None
    effect: float
    side: Annotated[int, Within(-1, 1)]


@dataclass(frozen=True)
class HeadExplanation:
    """What a class head on K components of U units made of N images.

    D (N, C) are the logits, less their mean over the classes and over the images; the share of a
    part D_j is ⟨D_j, D⟩ / ⟨D, D⟩: cov(part, logit) / var(logit), averaged over the classes, each of
    which weighs as its logit varies. All shares, the texts' included, add up to 1.

    Attributes:
        class_names: of the C classes that the head was fitted on.
        units: the adapted units.
        counts: components of each.
        share: (K,).
        toward_label: (K,), mean of what each adds to the label's logit.
        portrait: what each adds to the logit of a class in the images of that class (K, C), on
            average; NaN for a class without images.
        sides: where these images lie along each component, −1, 0 or 1 (K, C), int8.
        text_share: of the texts.
        text_toward_label: as `toward_label`.
        constant_toward_label: the same for what is said of every image.
        spread: root mean square of D, in units of a logit.
        images: N.
        per_unit: whether the adapter keeps no components of its own.
    """

    class_names: tuple[str, ...]
    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    share: Tensor
    toward_label: Tensor
    portrait: Tensor
    sides: Tensor
    text_share: float
    text_toward_label: float
    constant_toward_label: float
    spread: float
    images: int
    per_unit: bool = False

    def by_unit(self) -> list[ComponentShare]:
        """What is made of every unit, in the order of the tower."""
        numbers = (by_unit(part, self.counts).tolist() for part in (self.share, self.toward_label))
        return [
            ComponentShare(unit, None, *own)
            for unit, *own in zip(self.units, *numbers, strict=True)
        ]

    def strongest(self, count: int = 10) -> list[ComponentShare]:
        """The components, or whole units, with the largest shares, whatever their sign."""
        if self.per_unit:
            return sorted(self.by_unit(), key=lambda item: -abs(item.share))[:count]
        return [
            ComponentShare(unit, number, share, float(self.toward_label[column]))
            for unit, number, column, share in strongest_of(
                self.share, self.units, self.counts, False, count
            )
        ]

    def reasons(self, class_index: int, count: int = 3) -> tuple[list[Reason], list[Reason]]:
        """What speaks for a class in its own images, and what against it, the strongest first.

        At most `count` of each; none for a class without images.

        Raises:
            ResiDualError: no such class.
        """
        if not 0 <= class_index < len(self.class_names):
            raise ResiDualError(
                f"wanted a class from 0 to {len(self.class_names) - 1}, got {class_index}."
            )
        values = self.portrait[:, class_index].nan_to_num()
        if self.per_unit:
            values = by_unit(values, self.counts)

        def reason(index: int) -> Reason:
            place, number = (index, None) if self.per_unit else place_of(index, self.counts)
            side = 0 if self.per_unit else int(self.sides[index, class_index])
            return Reason(self.units[place], number, float(values[index]), side)

        pro, con = strongest(values, count)
        return [reason(index) for index in pro.tolist()], [reason(index) for index in con.tolist()]


def explain_head(
    classifier: ZeroShotClassifier, rows: Coordinates | CoordinateStore
) -> HeadExplanation:
    """Divide what a class head says of some images among units and components, exactly.

    Args:
        classifier: with a head on the coordinates of its active adapter.
        rows: from `collect_coordinates` or `write_coordinates`; labels of one class per image.
            Images of classes that the head was not fitted on say nothing of it, and are left out.

    Raises:
        ResiDualError: no head, one that reads no coordinates, coordinates of another adapter,
            labels outside the classes, or fewer than two images of the head's classes.
    """
    head = explained_head(classifier)
    # less what all classes have alike
    weights = head.weights - head.weights.mean(1, keepdim=True)
    head = replace(head, weights=weights, offset=head.offset - head.offset.mean())
    check_rows(rows, head)
    ONE_LABEL.check(rows.labels, len(classifier.class_names))
    sums = _Sums(head)
    for part in chunks(rows):
        part = part.rows((part.labels < head.class_count).nonzero().flatten())
        sums.add(head, part, text_of(classifier, part, head))
    if sums.images < 2:
        raise ResiDualError(
            f"wanted at least two images of the classes that the head was fitted on, got "
            f"{sums.images}: a logit does not vary over one."
        )
    return sums.explanation(classifier, head, rows)


class _Sums:
    """Sums over images, from which shares and means follow; all float64."""

    def __init__(self, head: ClassHead) -> None:
        k, c = head.weights.shape
        zeros = partial(torch.zeros, dtype=torch.float64)
        self.products = zeros(k, c)  # Σ x_j D_k, x the centred and scaled coordinates
        self.features = zeros(k)  # Σ x_j
        self.logits = zeros(c)  # Σ D_k
        self.squares = 0.0  # Σ D²
        self.text = zeros(c)  # Σ a z_k
        self.text_products = 0.0  # Σ a z D
        self.own = zeros(k, c)  # Σ x_j over the images of each class
        self.own_text = 0.0  # Σ a z of the label
        self.labels = zeros(c)  # images of each class

    @property
    def images(self) -> int:
        return int(self.labels.sum())

    def add(self, head: ClassHead, part: Coordinates, text: Tensor) -> None:
        x = (part.coordinates.double() - head.mean) / head.scale
        text = text - text.mean(1, keepdim=True)
        logits = head.temperature * (x @ head.weights + head.offset) + text
        self.products += x.mT @ logits
        self.features += x.sum(0)
        self.logits += logits.sum(0)
        self.squares += float(logits.square().sum())
        self.text += text.sum(0)
        self.text_products += float((text * logits).sum())
        self.own.index_add_(1, part.labels, x.mT.contiguous())
        self.own_text += float(text.gather(1, part.labels[:, None]).sum())
        self.labels += part.labels.bincount(minlength=len(self.labels))

    def explanation(
        self, classifier: ZeroShotClassifier, head: ClassHead, rows: Coordinates | CoordinateStore
    ) -> HeadExplanation:
        count, tau = self.images, head.temperature
        mean = self.logits / count
        total = self.squares - count * float(mean.square().sum())
        # what is left of rounding where nothing varies is no variance
        scale = total if total > 1e-12 * max(self.squares, 1e-300) else float("inf")
        along = self.products - self.features[:, None] * mean
        means = self.own / self.labels  # NaN for a class without images
        return HeadExplanation(
            class_names=classifier.class_names[: head.class_count],
            units=rows.state.settings.units,
            counts=tuple(rows.state.counts),
            share=tau * (along * head.weights).sum(1) / scale,
            toward_label=tau * (self.own * head.weights).sum(1) / count,
            portrait=tau * means * head.weights,
            sides=means.nan_to_num().sign().to(torch.int8),
            text_share=(self.text_products - float(self.text @ mean)) / scale,
            text_toward_label=self.own_text / count,
            constant_toward_label=tau * float(self.labels @ head.offset) / count,
            spread=(max(total, 0.0) / count / head.class_count) ** 0.5,
            images=count,
            per_unit=rows.state.settings.per_unit,
        )


def explained_head(classifier: ZeroShotClassifier) -> ClassHead:
    """The class head, in float64 on the CPU.

    Raises:
        ResiDualError: there is none, or it reads the embedding, which is no sum over components.
    """
    trained = classifier.head
    if trained is None:
        raise ResiDualError(
            "wanted a classifier with a class head, got one of texts and gains: `explain_adapter` "
            "says what gains did."
        )
    if trained.features != "coordinates":
        raise ResiDualError(
            "the class head reads the embedding as a whole, so what it says does not divide among "
            "heads and MLPs; fit one on the coordinates (method='ridge') to see where it looks."
        )
    return trained.head.to("cpu").to(torch.float64)


def text_of(classifier: ZeroShotClassifier, part: Coordinates, head: ClassHead) -> Tensor:
    """a z, what the texts add to the logits (n, C), float64; zeros where they have no weight."""
    if not head.text_weight:
        return torch.zeros(len(part), head.class_count, dtype=torch.float64)
    exact = replace(
        part,
        readout=part.readout.double(),
        coordinates=part.coordinates.double(),
        state=part.state.map(lambda t: t.double() if t.is_floating_point() else t),
    )
    with torch.no_grad():
        adapted = exact.adapted(gains_of(classifier.model).detach().cpu().double())
        weights = classifier.class_embeddings[: head.class_count].cpu().double()
        z = classifier.logit_scale * functional.normalize(adapted, dim=1) @ weights.mT
    return head.text_weight * z


def check_rows(rows: Coordinates | CoordinateStore, head: ClassHead) -> None:
    """Raise a ResiDualError where coordinates are not what a head reads."""
    columns = sum(rows.state.counts)
    if columns != len(head.mean):
        raise ResiDualError(
            f"the class head reads {len(head.mean)} coordinates, these are {columns} of another "
            "basis or other units; collect them anew with collect_coordinates."
        )
