"""What every rival of the ridge comes to: scores of its own, a text weight and a temperature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch import Tensor

from ...data.labels import ONE_LABEL, check_same, labelling_in
from .finishing import finish
from .head import Scorer, text_of
from .images import Images, checked
from .left_out import How, LeftOut
from .preparing import UnitRows


@dataclass(frozen=True)
class LinearScorer:
    """f W + b of features of length 1, and α_k z_k where the text has a weight for each class."""

    rows: UnitRows
    weights: Tensor  # W (K, C)
    offset: Tensor | None = None  # b (C,)
    text_weights: Tensor | None = None  # α (C,)

    @property
    def parameter_count(self) -> int:
        """K C, and C for each of b and α."""
        parts = (self.weights, self.offset, self.text_weights)
        return sum(part.numel() for part in parts if part is not None)

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """(M, K) and z (M, C), which counts where there is α -> (M, C)."""
        found = self.rows(features) @ self.weights
        if self.offset is not None:
            found = found + self.offset
        if self.text_weights is not None:
            found = found + self.text_weights * text_of(found, zero_shot)
        return found


@dataclass(frozen=True)
class Rival:
    """`a z + τ s`, with s a method's own scores: a `Scorer`."""

    scorer: Scorer  # the method; where its scores hold the text already, a is 0
    text_weight: float  # a
    temperature: float  # τ
    left_out: LeftOut  # predictions for every training image by a fit without it, a and τ applied
    # the method's own numbers that were chosen on left-out images, by name
    chosen: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """Numbers trained or kept, a and τ among them."""
        return self.scorer.parameter_count + 2

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """(M, K) and, where text counts, (M, C) -> (M, C) in float64."""
        scores = self.temperature * self.scorer.logits(features, zero_shot)
        if not self.text_weight:
            return scores
        return scores + self.text_weight * text_of(scores, zero_shot)


def rival(
    scorer: Scorer,
    left: Tensor,
    images: Images,
    how: How,
    known: Tensor,
    *,
    with_text: bool,
    temperature: float = 1.0,
    chosen: Mapping[str, float] | None = None,
) -> Rival:
    """Finish a method, fitted on all images, from its left-out scores (N, C); see `finish`."""
    a, temperature, left_out = finish(
        left, images, how, known, with_text=with_text, temperature=temperature
    )
    return Rival(scorer, a, temperature, left_out, dict(chosen or {}))


def one_label(
    features: Tensor, labels: Tensor, class_count: int, zero_shot: Tensor | None
) -> Images:
    """Images with one label each, checked."""
    why = "the ridge and logistic regression have one for each class, this method has none"
    check_same(ONE_LABEL, labelling_in(labels), why)
    return checked(features, labels, class_count, zero_shot=zero_shot)


@dataclass(frozen=True)
class Shots:
    """Training images as the methods that compare by cosines take them."""

    data: Images  # checked
    rows: UnitRows  # how features are prepared
    unit: Tensor  # theirs, of length 1 (N, K)
    groups: Tensor | None  # (N,), left out together; None where each image is on its own


def on_unit_rows(fit: Callable[..., Rival]) -> Callable[..., Rival]:
    """Have a rival that is fitted on `Shots` take images, as all do, beside its own options.

    `power` None takes embeddings as they are, which the papers of CLIP's rivals do; else features
    are centred and scaled first.
    """

    @wraps(fit)
    def of_images(
        features: Tensor,
        labels: Tensor,
        class_count: int,
        *,
        zero_shot: Tensor | None = None,
        power: float | None = None,
        groups: Tensor | None = None,
        **options: Any,
    ) -> Rival:
        data = one_label(features, labels, class_count, zero_shot)
        rows = UnitRows.of(data, power)
        return fit(Shots(data, rows, rows(data.features), groups), **options)

    return of_images
