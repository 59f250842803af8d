"""What logistic regression and the linear map minimise, by L-BFGS in the images' principal axes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .finishing import log_losses, part_of
from .images import Images
from .minimising import scaled_minimum


@dataclass(frozen=True)
class Problem:
    """Σ_i w_i loss_i + ½ α ‖A‖² of logits begin + R A S, over A (r, q)."""

    data: Images
    rows: Tensor  # R (N, r), whose columns are orthogonal
    begin: Tensor  # (N, C)
    spread: Tensor | None = None  # S (q, C); None for the identity
    free: int = 0  # how many of the last rows of A are not held to 0

    def zeros(self) -> Tensor:
        """Where a fit starts by itself."""
        width = self.data.targets.shape[1] if self.spread is None else len(self.spread)
        return self.rows.new_zeros(self.rows.shape[1], width)

    def scores(self, point: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Logits (N, C) of a fit for the images, or for some of them."""
        return self.begin[rows] + self._spread(self.rows[rows] @ point)

    def solve(
        self, strength: float, start: Tensor, tolerance: float, kept: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """A for the rows of `kept`, in float32, or all; and the largest entry of its gradient.

        L-BFGS over A √h, with h the curvature of each entry at equal probabilities: as the rows'
        columns are orthogonal, that is all there is to know of it. The tolerance is per image.
        """
        if not start.numel():
            return start, 0.0
        dtype = torch.float64 if kept is None else torch.float32
        kept = torch.ones(len(self.rows), dtype=torch.bool) if kept is None else kept
        data, rows, begin = part_of(self.data, kept), self.rows[kept], self.begin[kept]
        weights, labelling, products = data.weights[:, None], data.labelling, rows.to(dtype)
        penalty = torch.full((rows.shape[1], 1), strength, dtype=torch.float64)
        penalty[len(penalty) - self.free :] = 0.0
        steep: Tensor | float = labelling.curvature(data.targets.shape[1])
        if self.spread is not None:
            steep = steep * self.spread.square().sum(1)
        root = (penalty + steep * (weights * rows.square()).sum(0)[:, None]).sqrt()

        def function(point: Tensor) -> tuple[Tensor, Tensor]:
            logits = begin + self._spread(products @ point.to(dtype)).double()
            value = data.weights @ log_losses(logits, data)
            value = value + 0.5 * strength * point[: len(penalty) - self.free].square().sum()
            slope = (weights * (labelling.probabilities(logits) - data.targets)).to(dtype)
            slope = slope if self.spread is None else slope @ self.spread.to(dtype).mT
            return value, (products.mT @ slope).double() + penalty * point

        return scaled_minimum(function, start, root, tolerance * len(rows))

    def _spread(self, inner: Tensor) -> Tensor:
        return inner if self.spread is None else inner @ self.spread.to(inner)
