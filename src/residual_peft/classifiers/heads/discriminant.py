"""Linear discriminant analysis: one mean per class and one covariance for all, shrunk."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError
from .finishing import finish
from .head import ClassHead, FittedHead
from .images import ROUNDING, checked
from .left_out import How
from .nearest import DEFAULT_TEMPERATURE
from .preparing import scaling

Shrinkage = Literal["oas"] | float


@dataclass(frozen=True)
class Covariance:
    """Σ = (1 − ρ) S + ρ (tr S / K) I, with S the images' scatter about their class means over N.

    Its inverse is applied by way of the smaller side, so that K may be far beyond N.
    """

    level: float  # λ = ρ tr S / K
    factor: Tensor | None  # B (N, K) with Bᵀ B = (1 − ρ) S where N < K; else None
    root: Tensor  # lower Cholesky factor of B Bᵀ + λ I (N, N), or of Σ itself (K, K)

    @classmethod
    def of(cls, residuals: Tensor, shrinkage: float) -> "Covariance":
        """Of residuals (N, K) about the class means; refused where it has no inverse."""
        count, columns = residuals.shape
        trace = float(residuals.square().sum()) / count
        level = shrinkage * trace / columns
        factor = residuals * ((1 - shrinkage) / count) ** 0.5
        small = count < columns
        gram = factor @ factor.mT if small else factor.mT @ factor
        gram = gram + level * torch.eye(len(gram), dtype=gram.dtype)
        root, failed = torch.linalg.cholesky_ex(gram)
        if int(failed) or (small and level == 0):
            raise ResiDualError(
                f"wanted a covariance with an inverse, got one of {count} images in {columns} "
                f"columns with a shrinkage of {shrinkage:g}: give more of it, or leave the choice "
                "to 'oas'."
            )
        return cls(level, factor if small else None, root)

    @classmethod
    def alike(cls, level: float, columns: int) -> "Covariance":
        """λ I (K, K)."""
        return cls(level, torch.zeros(0, columns).double(), torch.zeros(0, 0).double())

    @property
    def is_alike(self) -> bool:
        """Whether it is `alike`: nothing was told of how images of a class differ."""
        return self.factor is not None and not len(self.factor)

    def solve(self, rows: Tensor) -> Tensor:
        """Σ⁻¹ x for every row x, (M, K) -> (M, K)."""
        if self.factor is None:
            return torch.cholesky_solve(rows.mT, self.root).mT
        if self.is_alike:
            return rows / self.level
        inner = torch.cholesky_solve(self.factor @ rows.mT, self.root)
        return (rows - inner.mT @ self.factor) / self.level


@dataclass(frozen=True)
class Discriminant:
    """What a discriminant analysis knows of its classes, in prepared features."""

    mean: Tensor  # (K,)
    scale: Tensor  # (K,)
    centres: Tensor  # of the classes (C, K)
    priors: Tensor  # their shares of the images (C,)
    covariance: Covariance  # that they share
    shrinkage: float  # ρ
    # squared Mahalanobis distances of each training image to every class, all of a fit without the
    # image (N, C); inf to its own class where it was the only image there
    squared: Tensor

    def distances(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances of images to every class, (M, K) -> (M, C)."""
        rows = (features.cpu().double() - self.mean) / self.scale
        return _squared(rows, self.centres, self.covariance)


@dataclass(frozen=True)
class DiscriminantFit(FittedHead):
    """Logits of Bayes's rule under equal covariances, up to a common term; left out singly."""

    model: Discriminant


def fit_discriminant(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    zero_shot: Tensor | None = None,
    shrinkage: Shrinkage = "oas",
    power: float = 0.5,
    class_weights: Tensor | None = None,
) -> DiscriminantFit:
    """Class means and one shrunk covariance; nothing is iterated and nothing is drawn.

    log p(k | c) = cᵀ Σ⁻¹ μ_k − ½ μ_kᵀ Σ⁻¹ μ_k + log π_k + common terms (R. A. Fisher, 1936).
    Left-out predictions come in closed form from the rank-one change of S, with λ and S's divisor
    as they are: exact for fixed ρ tr S / K, as the ridge's are for a fixed α. The text's weight a
    is fitted on them, with τ; class weights multiply the classes' priors.

    The shrinkage ρ: "oas" (Chen, Wiesel, Eldar and Hero, 2010) needs S alone; a number is taken as
    it is.
    """
    data = checked(features, labels, class_count, zero_shot=zero_shot, class_weights=class_weights)
    why = "use the ridge or logistic regression, which have one for each class"
    check_same(ONE_LABEL, data.labelling, why)
    mean, scale = scaling(data, power)
    rows = (data.features - mean) / scale
    counts = data.targets.sum(0)
    centres = data.targets.mT @ rows / counts[:, None]
    residuals = rows - centres[data.labels]
    share = shrinkage_of(residuals, shrinkage)
    if float(residuals.norm()) > ROUNDING * float(rows.norm()):
        covariance = Covariance.of(residuals, share)
    else:
        # one image per class, or copies of one: all directions alike, about as sure as cosines are
        level = float(rows.square().sum(1).mean()) or 1.0
        covariance = Covariance.alike(level / DEFAULT_TEMPERATURE, rows.shape[1])
    each = torch.ones(class_count).double().index_put_((data.labels,), data.weights)
    priors = counts * each / (counts * each).sum()
    squared = left_out_squared(rows, centres, data.labels, counts, covariance, share)
    directions = covariance.solve(centres)
    offset = priors.log() - 0.5 * (directions * centres).sum(1)
    known, left = (counts > 1)[data.labels], rows @ directions.mT + offset
    how: How = "one" if known.any() else "none"
    if known.any():
        logits = priors.log() - 0.5 * squared
        # an image that was its class's only one cannot be told right; finite, and below all others
        least = torch.where(logits.isfinite(), logits, torch.inf).amin(1, keepdim=True)
        left = torch.where(logits.isfinite(), logits, least - 1.0)
    text_weight, temperature, left_out = finish(left, data, how, known)
    head = ClassHead(mean, scale, directions.mT.contiguous(), offset, text_weight, temperature)
    model = Discriminant(mean, scale, centres, priors, covariance, share, squared)
    return DiscriminantFit(head, left_out, model)


def shrinkage_of(residuals: Tensor, shrinkage: Shrinkage) -> float:
    """ρ for residuals (N, K) about the class means, from the smaller of their Gram matrices."""
    if shrinkage != "oas":
        if not 0 <= shrinkage <= 1:
            raise ResiDualError(f"wanted a shrinkage from 0 to 1, got {shrinkage}.")
        return float(shrinkage)
    count, columns = residuals.shape
    small = residuals.mT if columns < count else residuals
    gram = small @ small.mT / count
    trace, squares = float(gram.trace()), float(gram.square().sum())
    # Chen et al., eq. 23, as scikit-learn has it: without the terms of order 1 / K
    mean, spread = trace / columns, squares / columns**2
    below = (count + 1) * (spread - mean**2 / columns)
    return 1.0 if below <= 0 else min((spread + mean**2) / below, 1.0)


def _squared(rows: Tensor, centres: Tensor, covariance: Covariance) -> Tensor:
    """(x − μ_k)ᵀ Σ⁻¹ (x − μ_k) of every row and class (M, C)."""
    directions = covariance.solve(centres)
    own = (rows * covariance.solve(rows)).sum(1, keepdim=True)
    level = (centres * directions).sum(1)
    return (own - 2 * rows @ directions.mT + level).clamp(min=0)


def left_out_squared(
    rows: Tensor,
    centres: Tensor,
    labels: Tensor,
    counts: Tensor,
    covariance: Covariance,
    shrinkage: float,
) -> Tensor:
    """(x − μ_k)ᵀ Σ⁻¹ (x − μ_k) of training images (N, C), by means and covariance without each.

    Of rows (N, K), centres (C, K) of their classes, which have `counts` (C,) images, and Σ with its
    shrinkage ρ; inf to the own class where the image was the only one there.

    With u = x − μ_y and c = n_y / (n_y − 1), the own mean moves so that x is c u away from it, and
    N S loses c u uᵀ; Σ⁻¹ follows by Sherman and Morrison.
    """
    squared = _squared(rows, centres, covariance)
    away = rows - centres[labels]
    solved = covariance.solve(away)
    own = (away * solved).sum(1)
    size = counts[labels]
    ratio = torch.where(size > 1, size / (size - 1).clamp(min=1), 0.0)
    change = (1 - shrinkage) / len(rows) * ratio
    left = 1 - change * own
    if float(left.min()) <= 1e-9:
        raise ResiDualError(
            f"wanted a covariance that has an inverse without any one of {len(rows)} images, too, "
            f"got one with a shrinkage of {shrinkage:g} that has none: give more of it, or leave "
            "the choice to 'oas'."
        )
    across = (solved * rows).sum(1, keepdim=True) - solved @ centres.mT  # uᵀ Σ⁻¹ (x − μ_k)
    squared = squared + (change / left)[:, None] * across.square()
    squared[torch.arange(len(rows)), labels] = torch.where(
        size > 1, ratio.square() * own / left, torch.inf
    )
    return squared
