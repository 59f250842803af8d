"""What a class head says: which units and components speak for which class, in sums that are exact.

A head on coordinates is linear, so that its logits divide among the columns with nothing left over:

    logit_k = Σ_j τ (c_j − mean_j) / scale_j V_jk    the components
            + τ m_k                                  the same for every image
            + a z_k                                  the texts

As no decision depends on what all classes gain alike, all of it counts from its mean over classes.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..classifiers.heads.explain import by_unit, class_portrait, strongest
from ..classifiers.heads.head import ClassHead
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import ONE_LABEL
from ..errors import ResiDualError
from ..hub.files import Count, Within
from ..solvers.coordinates import Coordinates
from ..solvers.store import CoordinateStore
from ..towers.units import Unit
from .head_read import check_rows, explained_head, text_of
from .movement import chunks, place_of


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
        share, toward = (
            self._summed(values).tolist() for values in (self.share, self.toward_label)
        )
        return [
            ComponentShare(unit, None, *numbers)
            for unit, *numbers in zip(self.units, share, toward, strict=True)
        ]

    def strongest(self, count: int = 10) -> list[ComponentShare]:
        """The components, or whole units, with the largest shares, whatever their sign."""
        if self.per_unit:
            return sorted(self.by_unit(), key=lambda item: -abs(item.share))[:count]
        order = self.share.abs().argsort(descending=True, stable=True)[:count].tolist()
        return [
            ComponentShare(*_named(self, j), float(self.share[j]), float(self.toward_label[j]))
            for j in order
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
            sums = self._summed(values)
            found = [
                [Reason(self.units[j], None, float(sums[j]), 0) for j in end.tolist()]
                for end in strongest(sums, count)
            ]
        else:
            side = self.sides[:, class_index]
            found = [
                [Reason(*_named(self, j), float(values[j]), int(side[j])) for j in end.tolist()]
                for end in strongest(values, count)
            ]
        return found[0], found[1]

    def _summed(self, values: Tensor) -> Tensor:
        return by_unit(values, self.counts)


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
    head = _centred(explained_head(classifier))
    check_rows(rows, head)
    ONE_LABEL.check(rows.labels, len(classifier.class_names))
    sums = _Sums.of(head)
    for part in chunks(rows):
        part = part.rows((part.labels < head.class_count).nonzero().flatten())
        sums.add(head, part, text_of(classifier, part, head))
    if sums.images < 2:
        raise ResiDualError(
            f"wanted at least two images of the classes that the head was fitted on, got "
            f"{sums.images}: a logit does not vary over one."
        )
    return sums.explanation(classifier, head, rows)


@dataclass
class _Sums:
    """Sums over images, from which shares and means follow; all float64."""

    products: Tensor  # Σ x_j D_k (K, C), x the centred and scaled coordinates
    features: Tensor  # Σ x_j (K,)
    logits: Tensor  # Σ D_k (C,)
    squares: float  # Σ D²
    text: Tensor  # Σ a z_k (C,)
    text_products: float  # Σ a z D
    own: Tensor  # Σ x_j over the images of each class (K, C)
    own_text: float  # Σ a z of the label
    labels: Tensor  # images of each class (C,)

    @classmethod
    def of(cls, head: ClassHead) -> "_Sums":
        k, c = head.weights.shape
        zeros = [torch.zeros(size, dtype=torch.float64) for size in ((k, c), (k,), (c,), (c,))]
        own, labels = torch.zeros_like(zeros[0]), torch.zeros(c, dtype=torch.float64)
        return cls(zeros[0], zeros[1], zeros[2], 0.0, zeros[3], 0.0, own, 0.0, labels)

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
        plain = replace(head, mean=0 * head.mean, scale=torch.ones_like(head.scale))
        portrait = class_portrait(plain, means.mT)  # of x, which is centred and scaled
        return HeadExplanation(
            class_names=classifier.class_names[: head.class_count],
            units=rows.state.settings.units,
            counts=tuple(rows.state.counts),
            share=tau * (along * head.weights).sum(1) / scale,
            toward_label=tau * (self.own * head.weights).sum(1) / count,
            portrait=portrait,
            sides=means.nan_to_num().sign().to(torch.int8),
            text_share=(self.text_products - float(self.text @ mean)) / scale,
            text_toward_label=self.own_text / count,
            constant_toward_label=tau * float(self.labels @ head.offset) / count,
            spread=(max(total, 0.0) / count / head.class_count) ** 0.5,
            images=count,
            per_unit=rows.state.settings.per_unit,
        )


def _centred(head: ClassHead) -> ClassHead:
    """The same less what all classes have alike."""
    weights = head.weights - head.weights.mean(1, keepdim=True)
    return replace(head, weights=weights, offset=head.offset - head.offset.mean())


def _named(explanation: HeadExplanation, index: int) -> tuple[Unit, int]:
    place, number = place_of(index, explanation.counts)
    return explanation.units[place], number
