"""A basis as it is kept and stored: a head's directions in the head's own e + 1 dimensions.

A head contributes x = B ẑ with B (d, e + 1) (`method.md`, section 2), so its directions and its
mean lie in the range of B. With Q the polar factor of B (B = Q (BᵀB)^½, orthonormal columns),

    Φᵀ = Q G,  G = Qᵀ Φᵀ (e + 1, k)        μ = Q m,  m = Qᵀ μ (e + 1,)

and (k, e + 1) numbers say what (k, d) would, with Q at hand wherever the weights are. Unlike the
factors of a QR or an SVD, Q depends on no choice of sign or order: every machine finds the same.
Where B has not full rank, Q has more columns than that, chosen anyhow, on which G is zero. Where
d ≤ e + 1 there is nothing to gain and Q is the identity.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...towers.anatomy import TowerAnatomy
from ...towers.units import Unit
from .state import StoredBasis


def polar_frames(factors: Tensor) -> Tensor:
    """Q of each B (..., d, n) with d ≥ n: the orthonormal columns that are nearest to its own."""
    frame, triangle = torch.linalg.qr(factors)
    left, _, right = torch.linalg.svd(triangle)
    return frame @ left @ right


def stored_width(anatomy: TowerAnatomy) -> int:
    """The numbers that a direction of a head is stored in: J (e + 1), or d if that is less."""
    return min(anatomy.readout_width, anatomy.factor_width)


class HeadSpace:
    """The frames of the heads among some units of a tower: between d dimensions and e + 1."""

    def __init__(self, anatomy: TowerAnatomy, units: Sequence[Unit]) -> None:
        self.anatomy, self.units = anatomy, tuple(units)

    @cached_property
    def factors(self) -> dict[Unit, Tensor]:
        """B_u = [R W_u, R b/H] (d, e + 1) of each head, float64."""
        matrix = self.anatomy.readout_matrix()
        heads = [unit for unit in self.units if unit.kind == "head"]
        layers = sorted({unit.layer for unit in heads if unit.layer is not None})
        found = {layer: self.anatomy.head_factor(layer, matrix) for layer in layers}
        return {
            unit: found[unit.layer][unit.head]
            for unit in heads
            if unit.layer is not None and unit.head is not None
        }

    @cached_property
    def frames(self) -> dict[Unit, Tensor]:
        """Q_u (d, e + 1) of each head, float64."""
        if not self.factors:
            return {}
        width = self.anatomy.readout_width
        if width == stored_width(self.anatomy):
            eye = torch.eye(width, dtype=torch.float64, device=self.anatomy.float64_device)
            return dict.fromkeys(self.factors, eye)
        frames = polar_frames(torch.stack(list(self.factors.values())))
        return dict(zip(self.factors, frames.unbind(0), strict=True))

    def pack(
        self,
        components: Sequence[Tensor],
        means: Tensor,
        eigenvalues: Tensor,
        total_variance: Tensor,
    ) -> StoredBasis:
        """From readout space to what is kept.

        Of Φ_u (k_u, d) of each unit, none with one gain per unit, μ (U, d), eigenvalues (K,) and
        total variances (U,).
        """
        directions = list(zip(self.units, components, strict=False))
        centres = list(zip(self.units, means.split(1), strict=True))
        return StoredBasis(
            head_components=self._stacked(directions, True),
            head_means=self._stacked(centres, True),
            components=self._stacked(directions, False),
            means=self._stacked(centres, False),
            eigenvalues=eigenvalues,
            total_variance=total_variance,
        )

    def unpack(self, stored: StoredBasis, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Φ (K, d) and μ (U, d) in the order of the units, float64."""
        directions = self._out(stored.head_components, stored.components, counts)
        return directions, self._out(stored.head_means, stored.means, [1] * len(self.units))

    def _stacked(self, pairs: Sequence[tuple[Unit, Tensor]], heads: bool) -> Tensor:
        """Rows (n, d) of heads, as (n, e + 1), or of the others, one below the other."""
        chosen = [(u, self.anatomy.float64(t)) for u, t in pairs if (u.kind == "head") == heads]
        rows = [tensor @ self.frames[unit] if heads else tensor for unit, tensor in chosen]
        width = stored_width(self.anatomy) if heads else self.anatomy.readout_width
        return torch.cat(rows) if rows else torch.zeros(0, width, dtype=torch.float64)

    def _out(self, in_heads: Tensor, others: Tensor, counts: Sequence[int]) -> Tensor:
        float64, rows, taken = self.anatomy.float64, [], [0, 0]
        zero = not bool(in_heads.any())  # as means without data are: no frame is needed
        for unit, count in zip(self.units, counts, strict=False):
            inside = unit.kind == "head"
            part = slice(taken[inside], taken[inside] + count)
            taken[inside] += count
            if inside and zero:
                rows.append(float64(others.new_zeros(count, self.anatomy.readout_width)))
            elif inside:
                rows.append(float64(in_heads[part]) @ self.frames[unit].T)
            else:
                rows.append(float64(others[part]))
        return torch.cat(rows) if rows else float64(others)
