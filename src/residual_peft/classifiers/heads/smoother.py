"""Ridge at every strength from one eigendecomposition, and what it says of rows left out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .images import Images
from .left_out import Leaving

LEAST_DEVIATION = 1e-4
"""Of the largest one; below it a column is rounding noise, which p = 1 would blow up."""
# rows of parts that are solved for together: several larger systems at once end in "Pivots given to
# lu_solve must all be greater or equal to 1" where oneMKL has two threads (torch 2.x, 200 rows)
_TOGETHER = 64
_AT_ONCE = 2**24  # numbers that are gathered at a time


def scales_of(variance: Tensor, power: float) -> Tensor:
    """std^p (K,), floored at `LEAST_DEVIATION` of the largest; ones where nothing varies."""
    deviation = variance.clamp_min(0).sqrt()
    largest = float(deviation.max())
    if largest == 0:
        return torch.ones_like(deviation)
    return deviation.clamp_min(LEAST_DEVIATION * largest) ** power


@dataclass(frozen=True)
class Smoother:
    """min_V Σ_i w_i ‖y_i − m − Vᵀ c̃_i‖² + α ‖V‖² for one set of rows and any α and y.

    With X = √w c̃ (N, K), centred by the weighted mean, m is the weighted mean of y whatever α is,
    and √w ŷ = H √w (y − m) with H = P diag(g) Pᵀ. Where N ≤ K (dual), P are the eigenvectors of
    X Xᵀ and g = e / (e + α); else (primal) P = X U with the eigenvectors U of Xᵀ X, and
    g = 1 / (e + α). The fit has its own mean, so that h_i = H_ii + w_i / Σ w.
    """

    mean: Tensor  # the weighted mean of the features (K,)
    scale: Tensor  # that they are divided by (K,)
    rows: Tensor  # X (N, K)
    roots: Tensor  # √w (N,)
    eigenvalues: Tensor  # e, increasing (r,)
    vectors: Tensor  # P (N, r)
    lift: Tensor | None  # U (K, r) if primal, else None

    @classmethod
    def of(
        cls, images: Images, power: float, scale: Tensor | None = None, primal: bool | None = None
    ) -> "Smoother":
        """Centre, scale and decompose the features; `primal` None for the smaller side."""
        weights = images.weights
        mean = weights @ images.features / weights.sum()
        rows = images.features - mean
        if scale is None:
            scale = scales_of((weights @ rows.square()) / weights.sum(), power)
        roots = weights.sqrt()
        rows = rows.div_(scale).mul_(roots.unsqueeze(1))
        if primal is None:
            primal = rows.shape[1] < rows.shape[0]
        gram = rows.mT @ rows if primal else rows @ rows.mT
        eigenvalues, vectors = torch.linalg.eigh(gram)
        del gram
        lift = vectors if primal else None
        if primal:
            vectors = rows @ vectors
        return cls(mean, scale, rows, roots, eigenvalues.clamp_min(0), vectors, lift)

    @property
    def size(self) -> float:
        """Mean squared length of a row, what strengths are measured by; 1 where all are 0."""
        return float(self.eigenvalues.sum()) / len(self.rows) or 1.0

    def centred(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """√w (y − m) (N, C), and m (C,)."""
        weights = self.roots.square()
        offset = weights @ targets / weights.sum()
        return (targets - offset) * self.roots.unsqueeze(1), offset

    def weights(self, centred: Tensor, alphas: Tensor) -> Tensor:
        """V (K, C), each class with its own α (C,)."""
        inner = (self.vectors.mT @ centred) / (self.eigenvalues.unsqueeze(1) + alphas)
        if self.lift is not None:
            return self.lift @ inner
        return self.rows.mT @ (self.vectors @ inner)

    def gains(self, alpha: float) -> Tensor:
        """The diagonal g of H = P diag(g) Pᵀ."""
        shrunk = 1 / (self.eigenvalues + alpha)
        return shrunk if self.lift is not None else self.eigenvalues * shrunk

    def fitted(self, targets: Tensor, alpha: float) -> Tensor:
        """ŷ (N, C) of all rows by the fit on all rows."""
        centred, offset = self.centred(targets)
        inner = self.gains(alpha).unsqueeze(1) * (self.vectors.mT @ centred)
        return self.vectors @ inner / self.roots.unsqueeze(1) + offset

    def path(
        self, targets: Tensor, alphas: Tensor, leaving: Leaving
    ) -> Iterator[tuple[float, Tensor]]:
        """For each α, ŷ (N, C) of all rows, each by the fit without its part.

        For a part B, the residuals of the fit without it are (I − H_BB)⁻¹ times those of the fit
        with it, in the weighted rows; for one row they are divided by 1 − h_i. Exact for fixed
        scales: `tests/classifiers/heads` fits again without each part.
        """
        centred, offset = self.centred(targets)
        inner = self.vectors.mT @ centred
        unit = self.roots / self.roots.norm()
        squares = self.vectors.square() if leaving.how == "one" else None
        blocks = None
        if leaving.how in ("block", "group"):
            parts = _by_size(leaving.parts, self.vectors.shape[1])
            blocks = [_Parts.of(rows, self.vectors[rows], unit[rows]) for rows in parts]
        for alpha in alphas.tolist():
            gains = self.gains(alpha)
            residual = centred - self.vectors @ (gains.unsqueeze(1) * inner)
            if squares is not None:
                left = 1 - squares @ gains - unit.square()
                residual = residual / left.unsqueeze(1)
            elif blocks is not None:
                residual = _without_parts(residual, gains, blocks)
            yield alpha, (centred - residual) / self.roots.unsqueeze(1) + offset


@dataclass(frozen=True)
class _Parts:
    """Parts B of one size, that are left out in turn."""

    rows: Tensor  # (parts, size)
    vectors: Tensor  # P of them (parts, size, r)
    own: Tensor  # √(w / Σ w) (parts, size, 1)
    squares: Tensor | None  # Zᵀ Z with Z = [P, own] (parts, r + 1, r + 1), where that is smaller

    @classmethod
    def of(cls, rows: Tensor, vectors: Tensor, own: Tensor) -> "_Parts":
        own = own.unsqueeze(2)
        squares = None
        if rows.shape[1] > vectors.shape[2] + 1:
            squares = torch.stack([z.mT @ z for z in torch.cat([vectors, own], dim=2)])
        return cls(rows, vectors, own, squares)

    def without(self, residual: Tensor, gains: Tensor) -> Tensor:
        """(I − H_BB)⁻¹ times the residuals (parts, size, C) of each.

        H_BB is Z D Zᵀ with D = diag(g, 1). Of a part with more rows than Z has columns that is
        R + Z (D⁻¹ − Zᵀ Z)⁻¹ Zᵀ R, Woodbury's identity. (Then P is the primal one, without g = 0.)
        """
        if self.squares is not None:
            left = torch.cat([1 / gains, gains.new_ones(1)]).diag() - self.squares
            moved = torch.cat([self.vectors.mT @ residual, self.own.mT @ residual], dim=1)
            inner = _solved(left, moved)
            return residual + self.vectors @ inner[:, :-1] + self.own * inner[:, -1:]
        left = torch.eye(self.rows.shape[1], dtype=gains.dtype) - self.own @ self.own.mT
        return _solved(left - (self.vectors * gains) @ self.vectors.mT, residual)


def _solved(left: Tensor, right: Tensor) -> Tensor:
    """Solutions (parts, n, C) of systems (parts, n, n)."""
    if left.shape[1] <= _TOGETHER:
        return torch.linalg.solve(left, right)
    return torch.stack([torch.linalg.solve(*one) for one in zip(left, right, strict=True)])


def _without_parts(residual: Tensor, gains: Tensor, blocks: list[_Parts]) -> Tensor:
    """The residuals (N, C) of each part by the fit without it."""
    found = torch.empty_like(residual)
    for parts in blocks:
        found[parts.rows] = parts.without(residual[parts.rows], gains)
    return found


def _by_size(parts: tuple[Tensor, ...], width: int) -> Iterator[Tensor]:
    """Rows (parts, size) of equal size, no more of them than memory likes."""
    sizes: dict[int, list[Tensor]] = {}
    for part in parts:
        sizes.setdefault(len(part), []).append(part)
    for size, same in sizes.items():
        step = max(1, _AT_ONCE // (size * width))
        for start in range(0, len(same), step):
            yield torch.stack(same[start : start + step])
