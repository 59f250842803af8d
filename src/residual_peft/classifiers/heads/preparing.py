"""Features as the rivals of the ridge want them: of length 1, or in few columns."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError
from .images import Images
from .smoother import scales_of

_RANK = 1e-12  # of an eigenvalue, beside the largest: below, it is rounding


def scaling(images: Images, power: float) -> tuple[Tensor, Tensor]:
    """Mean (K,) and divisor std^p (K,) of the images, weighted as they are: the ridge's."""
    share = images.weights / images.weights.sum()
    mean = share @ images.features
    return mean, scales_of(share @ (images.features - mean).square(), power)


@dataclass(frozen=True)
class UnitRows:
    """Features as methods that compare by cosines want them: rows of length 1."""

    mean: Tensor  # subtracted first (K,)
    scale: Tensor  # then divided by (K,)

    @classmethod
    def of(cls, images: Images, power: float | None) -> "UnitRows":
        """Of training images; with None nothing is centred or scaled, as for CLIP's embedding."""
        if power is None:
            first = images.features[0]
            return cls(torch.zeros_like(first), torch.ones_like(first))
        return cls(*scaling(images, power))

    def __call__(self, features: Tensor) -> Tensor:
        """(M, K) -> (M, K); another number of columns is refused."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ResiDualError(
                f"wanted features (M, {len(self.mean)}) like those it was fitted on, got "
                f"{tuple(features.shape)}."
            )
        return functional.normalize((features.cpu().double() - self.mean) / self.scale, dim=1)


@dataclass(frozen=True)
class PrincipalAxes:
    """Rows (N, K) as (N, r) in their own principal axes, r at most min(N, K).

    Whatever penalises the length of weights alone has the same optimum there: outside the span of
    the images it is 0.
    """

    rows: Tensor  # the images in those axes (N, r); their columns are orthogonal
    axes: Tensor  # orthonormal columns (K, r)
    energy: Tensor  # squared lengths of the columns of `rows` (r,), decreasing

    @classmethod
    def of(cls, features: Tensor) -> "PrincipalAxes":
        """By one eigendecomposition of the smaller Gram matrix."""
        count, columns = features.shape
        tall = columns <= count
        gram = features.mT @ features if tall else features @ features.mT
        values, vectors = torch.linalg.eigh(gram)
        kept = values > _RANK * max(float(values[-1]), 0.0)
        values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
        if tall:
            return cls(features @ vectors, vectors, values)
        root = values.sqrt()
        return cls(vectors * root, features.mT @ vectors / root, values)
