"""The spectrum of each unit: from one pass over images, or from the weights alone."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy, check_linear
from ..towers.units import Unit
from .moments import Moments

Components = int | float | None


@dataclass(frozen=True)
class UnitBasis:
    """Mean μ (d,), orthonormal rows Φ (k, d) and decreasing eigenvalues (k,) of one unit.

    `total_variance` () counts the directions that were truncated, too.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor
    total_variance: Tensor

    def truncate(self, components: Components) -> "UnitBasis":
        """Keep all directions (None), at most the first k (int), or a share of variance (float).

        A share keeps the fewest directions whose cumulative explained variance reaches it; more
        than an earlier truncation left is refused.
        """
        check_components(components)
        held, total = len(self.eigenvalues), float(self.total_variance)
        cumulative = self.eigenvalues.double().cumsum(0) / (total or 1.0)
        whole = not held or float(cumulative[-1]) > 1 - 1e-6  # nothing was cut off before
        if components is None:
            return self
        if isinstance(components, int):
            keep, reached = components, whole or components <= held
        else:
            keep = int((cumulative < components - 1e-12).sum()) + 1
            keep = held if whole and components == 1 else keep
            reached = whole or keep <= held
        if not reached:
            raise ResiDualError(
                f"wanted components={components}, but an earlier truncation left {held} with "
                f"{float(cumulative[-1]):.3f} of the variance: fit the basis again with more."
            )
        return replace(self, components=self.components[:keep], eigenvalues=self.eigenvalues[:keep])


def check_components(components: Any) -> None:
    """Refuse what is not None, a count from 1 on, or a share of variance in (0, 1]."""
    if components is None:
        return
    if isinstance(components, int) and not isinstance(components, bool) and components >= 1:
        return
    if isinstance(components, float) and 0 < components <= 1:
        return
    raise ResiDualError(
        f"components={components!r}: wanted None (all), an integer from 1 on (the first so many) "
        "or a float in (0, 1] (a share of the variance)."
    )


def map_spectra(maps: Tensor, moments: Moments, shift: float | Tensor = 0) -> list[UnitBasis]:
    """PCA of x = B z + shift from the moments of z (H, n): thin QR B = Q T, then T Cov(z) Tᵀ.

    method.md, section 2; eigenvectors V give Φ = (Q V)ᵀ. The maps B are (H, d, n), float64; the
    shift (d,) is the same for all H.
    """
    maps = maps.to(moments.mean.device)
    frames, triangles = torch.linalg.qr(maps)  # (H, d, r), (H, r, n)
    inner = triangles @ moments.covariance() @ triangles.mT
    means = (maps @ moments.mean.unsqueeze(2)).squeeze(2) + shift
    parts = zip(means, inner, frames, strict=True)
    return [spectrum(mean, covariance, frame, moments.count) for mean, covariance, frame in parts]


def spectrum(mean: Tensor, covariance: Tensor, frame: Tensor | None, count: int) -> UnitBasis:
    """Eigendecomposition of a covariance (r, r), its directions taken through `frame` (d, r)."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    limit = eigenvalues[:1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    keep = min(int((eigenvalues > limit).sum()), count - 1)
    return _first(keep, mean, vectors if frame is None else frame @ vectors, eigenvalues)


def weight_spectra(anatomy: TowerAnatomy, units: Iterable[Unit]) -> list[UnitBasis]:
    """Spectra from the weights alone: SVD of R W_u, as if what enters the last map were white.

    W_u is a head's columns of the output projection, the MLP's last linear map, or the identity
    (embed, output). Means are 0 (P β for the output), eigenvalues are squared singular values.
    """
    readout = anatomy.readout_matrix()
    maps = readout.unflatten(1, (anatomy.pools, -1)).transpose(0, 1)  # (J, d, D)
    found: list[UnitBasis] = []
    layer, heads = -1, readout
    for unit in units:
        matrix = readout
        if unit.layer is not None and unit.kind == "head":
            if unit.layer != layer:
                weight = anatomy.stream_weight(unit.layer)[0]
                layer, heads = unit.layer, torch.cat([pool @ weight for pool in maps], dim=2)
            matrix = heads[unit.head]
        elif writers := anatomy.writers(unit)[1:]:
            check_linear(
                f"{anatomy.architecture}: the last map of {unit}", writers[0], anatomy.width
            )
            matrix = anatomy.float64(writers[0].weight)
        if unit.layer is not None and unit.kind == "mlp":
            if (scale := anatomy.layers[unit.layer].mlp_scale) is not None:
                matrix = anatomy.float64(scale)[:, None] * matrix
            matrix = torch.cat([pool @ matrix for pool in maps], dim=1)
        mean = (
            anatomy.readout_bias() if unit.kind == "output" else torch.zeros(len(matrix)).double()
        )
        # a pooled head's map is as wide as the readout: hundreds of SVDs would take a minute
        squared = anatomy.pools > 1 and unit.layer is not None
        found.append(weight_spectrum(matrix, mean, squared=squared))
    return found


def weight_spectrum(matrix: Tensor, mean: Tensor, *, squared: bool = False) -> UnitBasis:
    """SVD of a map M (r, n): the spectrum of what it writes when what enters is white.

    `mean` is that of the result (r,). `squared` decomposes M Mᵀ instead, several times faster for a
    wide map, which loses directions with less than some 1e-7 of the largest singular value.
    """
    if squared:
        eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.T)
        left, singular = vectors.flip(1), eigenvalues.flip(0).clamp_min(0).sqrt()
        limit = singular[:1] * (max(matrix.shape) * torch.finfo(singular.dtype).eps) ** 0.5
    else:
        left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
        limit = singular[:1] * max(matrix.shape) * torch.finfo(singular.dtype).eps
    return _first(int((singular > limit).sum()), mean, left, singular.square())


def _first(keep: int, mean: Tensor, directions: Tensor, eigenvalues: Tensor) -> UnitBasis:
    """The first of some directions (d, r), each turned so that its largest entry is positive.

    A direction has no sign of its own.
    """
    rows = directions.T[:keep]
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = rows * torch.where(largest < 0, -1.0, 1.0)
    return UnitBasis(mean.cpu(), rows.cpu(), eigenvalues[:keep].cpu(), eigenvalues.sum().cpu())
