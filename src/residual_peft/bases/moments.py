"""Streaming mean and second moment in float64, mergeable in any order; knows no model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .processes import summed


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class Moments:
    """Mean (*S, n) and sum of centred outer products (*S, n, n) of what was added so far.

    Starts empty; the first batch gives it its shape. Sums are float64 whatever the input. The
    update is the pairwise one of Chan, Golub & LeVeque (1979), which does not lose digits where the
    mean is large against the spread, and does not care about batch sizes and order.

    >>> moments = Moments()
    >>> moments.update(torch.tensor([[0.0], [2.0]]))
    >>> moments.update(torch.tensor([[4.0]]))
    >>> moments.count, moments.mean.tolist(), moments.covariance().tolist()
    (3, [2.0], [[4.0]])
    """

    count: int = 0
    mean: Tensor = field(default_factory=_empty)
    m2: Tensor = field(default_factory=_empty)

    def update(self, batch: Tensor) -> None:
        """Add a batch (B, *S, n); an empty one changes nothing."""
        if len(batch) == 0:
            return
        batch = batch.detach().double()
        size, mean = len(batch), batch.mean(0)
        rows = (batch - mean).movedim(0, -2)  # (*S, B, n)
        if self.count == 0:
            self.count, self.mean, self.m2 = size, mean, rows.mT @ rows
            return
        self._check_shape(mean)
        count = self.count + size
        delta = mean - self.mean
        # what the means' distance adds is one more row: a single product, and nothing of the size
        # of `m2` beside it
        weight, width = self.count * size / count, delta.shape[-1]
        left = torch.cat([rows, weight * delta.unsqueeze(-2)], dim=-2).view(-1, size + 1, width)
        right = torch.cat([rows, delta.unsqueeze(-2)], dim=-2).view(-1, size + 1, width)
        self.m2.view(-1, width, width).baddbmm_(left.mT, right)
        self.mean = self.mean + delta * (size / count)
        self.count = count

    def merge(self, other: "Moments") -> None:
        """Add what another has seen, as if its samples had been added here; `other` stays."""
        if other.count == 0:
            return
        if self.count == 0:
            # m2 is added to in place, and the other stays
            self.count, self.mean, self.m2 = other.count, other.mean, other.m2.clone()
            return
        self._check_shape(other.mean)
        count = self.count + other.count
        delta = other.mean.to(self.mean.device) - self.mean
        outer = delta.unsqueeze(-1) * delta.unsqueeze(-2)
        self.m2 = self.m2 + other.m2.to(self.m2.device) + outer * (self.count * other.count / count)
        self.mean = self.mean + delta * (other.count / count)
        self.count = count

    def _check_shape(self, mean: Tensor) -> None:
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"cannot merge moments of shape {tuple(mean.shape)} into {tuple(self.mean.shape)}"
            )

    def across_processes(self, shape: tuple[int, ...], device: torch.device) -> "Moments":
        """What all processes of `torch.distributed` have seen, the same in each to the last bit.

        Every process has to call it. What is sent and held does not grow with their number. One
        that has seen nothing does not know the shape (*S, n) of a mean.
        """
        count = int(summed(torch.tensor(self.count)))
        if count == 0:
            return Moments()
        mean = self.mean.to(device)
        m2 = self.m2.to(device)
        if self.count == 0:
            mean = torch.zeros(shape, dtype=torch.float64, device=device)
            m2 = torch.zeros((*shape, shape[-1]), dtype=torch.float64, device=device)
        whole = summed(mean * self.count) / count
        # Chan et al. for any number of parts: each one's own spread, and that of its mean
        delta = mean - whole
        outer = delta.unsqueeze(-1) * delta.unsqueeze(-2)
        return Moments(count, whole, summed(m2 + outer * self.count))

    def covariance(self) -> Tensor:
        """Return the unbiased covariance (*S, n, n) of two samples or more, over count − 1."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, got {self.count}")
        return self.m2 / (self.count - 1)
