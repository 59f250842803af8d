"""What a fit of the gains minimizes: a loss of the logits plus a ridge on λ − 1 (`method.md`, 7).

Every solver shares it. With c, base and Φ as in `tuner.readout.state`, W_text (C, d) and
δ = λ − neutral,

    normalized:  logits = s · normalize(base + (c ⊙ δ) Φ) · W_textᵀ        the classifier's own
    linear:      logits = s / ρ · (base + (c ⊙ δ) Φ) · W_textᵀ             ρ: mean ‖y‖ of the images
    objective  = mean loss + strength / 2 · Σ_k w_k (λ_k − 1)²,  w_k = (v_k / mean v)^p

with v_k the mean square of what gain k scales. The linear one is convex, strictly so with a
strength above 0. ρ is a constant: it only gives the linear logits the size of the others.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.labels import Labelling, labelling_of_loss
from ..errors import ResiDualError
from .coordinates import Coordinates, in_chunks
from .store import CoordinateStore, Stores

KEPT = 2**26  # numbers: 256 MB in float32
LEAST_VARIANCE = 1e-3
"""Of the mean: below it the ridge weighs a gain as if it scaled so much.

As accurate as without on handwriting, within a point, by gains a tenth as large
(`benchmarks/gains.py`)."""
CHUNK = 1024  # images per matrix product: its logits and readouts stay small beside coordinates


@dataclass(frozen=True)
class Objective:
    """What is minimized.

    Attributes:
        normalized: whether readouts are normalized, as they are for predicting; False is the convex
            one.
        loss: "softmax", cross-entropy of one label per image; or "sigmoid", binary cross-entropy of
            each class by itself, for images with several labels or none.
        class_weights: "balanced" (N / (C · images of the class)), C numbers, or None. With
            "sigmoid" the weight is that of the class's positives.
        label_smoothing: from 0 to below 1, as in torch's `cross_entropy`; "softmax" only.
        strength: of the ridge, 0 or more.
        weighting: the exponent p of the ridge's weights: 0 penalizes every gain alike, 1 in
            proportion to the variance that it scales, so that what is penalized is the change. 1 is
            best on held-out images (`benchmarks/solvers.json`).
    """

    normalized: bool = True
    loss: Literal["softmax", "sigmoid"] = "softmax"
    class_weights: str | Sequence[float] | None = None
    label_smoothing: float = 0.0
    strength: float = 0.0
    weighting: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ResiDualError(f"wanted the loss 'softmax' or 'sigmoid', got {self.loss!r}.")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise ResiDualError(
                f"wanted class_weights 'balanced', numbers or None, got {self.class_weights!r}."
            )
        self.labelling.check_smoothing(self.label_smoothing, "label_smoothing")
        if not 0 <= self.strength < float("inf"):
            raise ResiDualError(f"wanted a strength of 0 or more, got {self.strength}.")

    @property
    def labelling(self) -> Labelling:
        """One label per image, or several."""
        return labelling_of_loss(self.loss)

    def check_labels(self, labels: Tensor, classifier: ZeroShotClassifier) -> None:
        """Refuse labels, or a classifier, that do not suit the loss.

        Raises:
            ResiDualError: class numbers outside the classes, or for "sigmoid" anything but a row of
                C zeros and ones per image; a classifier for several labels with "softmax".
        """
        self.labelling.check_loss_for(classifier)
        self.labelling.check(labels, len(classifier.class_names))

    def weights_of(self, labels: Tensor, classes: int) -> Tensor | None:
        """The weight of each class, (C,), for these labels.

        Raises:
            ResiDualError: not one positive, finite number per class, or "balanced" where a class
                has no image (or, with "sigmoid", is on every image).
        """
        if self.class_weights is None:
            return None
        if isinstance(self.class_weights, str):
            counts = self.labelling.counts(labels, classes)
            weights = self.labelling.balanced(counts, len(labels))
            if not (weights.isfinite() & (weights > 0)).all():
                raise ResiDualError(
                    f"class_weights='balanced' needs images of every class, got {counts.tolist()} "
                    "per class; give the weights as numbers."
                )
            return weights
        weights = torch.as_tensor(self.class_weights, dtype=torch.float64)
        if weights.shape != (classes,) or not (weights.isfinite() & (weights > 0)).all():
            raise ResiDualError(f"wanted {classes} class weights above 0, got {weights.tolist()}.")
        return weights

    def loss_of(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None, bias: Tensor | float = 0.0
    ) -> Tensor:
        """The loss of some images, summed; `Labelling.normalizer` is what to divide it by."""
        weights = None if weights is None else weights.to(logits)
        return self.labelling.loss(
            logits, labels, weights, bias, smoothing=self.label_smoothing, reduction="sum"
        )

    def ridge_weights(self, scales: Tensor) -> Tensor:
        """w (K,) from the mean squares v (K,) of what each gain scales."""
        relative = scales / scales.mean().clamp_min(torch.finfo(scales.dtype).tiny)
        # a direction with next to no variance would be free: its gain ran to thousands, for nothing
        return relative.clamp_min(LEAST_VARIANCE) ** self.weighting


class GainProblem:
    """An objective on some coordinates: value and gradient in the gains, images in chunks.

    Two matrix products per chunk, Y = base + C (δ ⊙ Φ) and Cᵀ dY, and nothing of the size of C
    beside C: the gains scale Φ, which all images share.

    Args:
        classifier: class embeddings W_text and logit scale.
        rows: the coordinates, in memory or on disk.
        objective: what is minimized.
        dtype: of the products; sums are float64.
    """

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        rows: Coordinates | CoordinateStore | Stores,
        objective: Objective,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        objective.check_labels(rows.labels, classifier)
        self.rows, self.objective, self.dtype = rows, objective, dtype
        self.classes = len(classifier.class_names)
        self.scale = classifier.logit_scale
        self.class_weights = objective.weights_of(rows.labels, self.classes)
        normalizer = objective.labelling.normalizer
        self.normalizer = normalizer(rows.labels, self.class_weights, self.classes)
        self.embeddings = classifier.class_embeddings.to(rows.labels.device, dtype)
        self.directions = rows.state.directions.to(dtype)  # Φ (K, d)
        # the classes are all that linear logits need of Φ: (K, C) in place of (K, d)
        self.in_classes = not objective.normalized and self.classes < self.embeddings.shape[1]
        if not objective.normalized:
            self.scale /= rows.mean_length
        if self.in_classes:
            self.directions = self.directions @ self.embeddings.T
        self.kept: dict[int, Tensor] = {}
        self.kind = rows.state.gains
        # the mean square of what multiplies each component's gain (K,)
        squares = torch.zeros_like(self.directions[:, 0], dtype=torch.float64)
        for some in in_chunks(rows.parts, CHUNK):
            squares += self.kind.factors(some.coordinates.double()).square().sum(0)
        self.component_scales = squares / len(rows)
        self.ridge_weights = objective.ridge_weights(self.kind.gather(self.component_scales))

    def with_strength(self, strength: float) -> "GainProblem":
        """The same with another ridge, without another look at the coordinates."""
        other = copy(self)
        other.objective = replace(self.objective, strength=strength)
        return other

    @torch.inference_mode(False)  # turns gradients on, too
    def value_and_gradient(self, gains: Tensor, bias: float = 0.0) -> tuple[float, Tensor, float]:
        """The objective at λ (K,) or (U,), its gradient of that shape in float64, and d/d bias."""
        gains = gains.double()
        offset = self.kind.offsets(gains, gains.dtype).to(self.dtype)
        scaled = offset[:, None] * self.directions
        # dYᵀ C, not Cᵀ dY: both then read C along its rows
        shape = self.directions.T.shape
        correlation = torch.zeros(shape, dtype=torch.float64, device=self.directions.device)
        total, bias_gradient = 0.0, 0.0
        for coordinates, base, labels in self._chunks():
            outputs = torch.addmm(base, coordinates, scaled).requires_grad_()
            shift = torch.tensor(bias, dtype=outputs.dtype, device=outputs.device)
            loss = self.objective.loss_of(
                self._logits(outputs), labels, self.class_weights, shift.requires_grad_()
            )
            loss.backward()
            assert outputs.grad is not None
            correlation += outputs.grad.T @ coordinates
            total += loss.item()
            bias_gradient += 0.0 if shift.grad is None else shift.grad.item()
        along = (correlation * self.directions.T).sum(0)
        gradient = self.kind.gather(along) / self.normalizer
        from_start = gains - self.kind.start
        pull = self.objective.strength * self.ridge_weights * from_start
        value = total / self.normalizer + 0.5 * float(pull @ from_start)
        return value, gradient + pull, bias_gradient / self.normalizer

    @torch.no_grad()
    def curvature(self) -> Tensor:
        """The diagonal of the Hessian where all classes are alike likely, float64: (K,) or (U,).

        v_k s² Var_c(φ_k · w_c) per component, plus the ridge's. Only a scale for the solver.
        """
        along = self.directions if self.in_classes else self.directions @ self.embeddings.T
        length = self.rows.mean_length if self.objective.normalized else 1.0
        spread = along.double().var(1, correction=0) * (self.scale / length) ** 2
        data = self.kind.gather(spread * self.component_scales)
        data = data + self.objective.strength * self.ridge_weights
        return data.clamp_min(1e-8 * float(data.max()) + torch.finfo(data.dtype).tiny)

    @torch.no_grad()
    def logits(self, gains: Tensor) -> Tensor:
        """The objective's logits (N, C), without a bias."""
        offsets = self.kind.offsets(gains, torch.float64).to(self.dtype)
        scaled = offsets[:, None] * self.directions
        return torch.cat(
            [self._logits(torch.addmm(base, c, scaled)) for c, base, _ in self._chunks()]
        )

    def _logits(self, outputs: Tensor) -> Tensor:
        if self.in_classes:
            return self.scale * outputs
        outputs = functional.normalize(outputs, dim=-1) if self.objective.normalized else outputs
        return self.scale * outputs @ self.embeddings.T

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What gains multiply, the part that none changes, and labels of some images at a time."""
        for number, some in enumerate(in_chunks(self.rows.parts, CHUNK)):
            factors = self.kind.factors(some.coordinates.to(self.dtype))
            yield factors, self._base(number, some), some.labels

    def _base(self, number: int, rows: Coordinates) -> Tensor:
        """The part of a chunk's outputs that no gain changes; kept where that is little."""
        if not self.in_classes:
            return rows.base.to(self.dtype)
        if number in self.kept:
            return self.kept[number]
        base = rows.base.to(self.dtype) @ self.embeddings.T
        if len(self.rows) * self.classes <= KEPT:
            self.kept[number] = base
        return base
