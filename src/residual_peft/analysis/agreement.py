"""How alike units are by what they wrote for the same images: the simpler measures.

| function | compares | models |
|---|---|---|
| `mean_cosine` | the means of two units, as directions | of one readout width |
| `image_cosine` | their contributions, image by image | of one readout width |
| `correlation` | how each coordinate of the readout varies over images | of one readout width |
| `relative_similarity` | their cosines to anchor images | any two |

The first three depend on where a model puts its axes, the last does not. All but the first want
the same images in the same order.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ResiDualError
from .contributions import Contributions, UnitContribution
from .matching import check_widths
from .similarity import SimilarityMatrix

_NUMBERS = 2**24  # in a block of images of all units: 64 MB in float32

Rows = Callable[[Tensor], Tensor]  # indices (n,) of images -> what a unit is compared by, (n, w)


def mean_cosine(
    contributions: Contributions, other: Contributions | None = None
) -> SimilarityMatrix:
    """Cosine of the units' mean contributions μ_u · μ_v / |μ_u||μ_v|, in [−1, 1].

    Looks at nothing but where the means point: the images may differ. The columns are the `other`'s
    units; None for the same.

    Raises:
        ResiDualError: readouts of different widths.
    """
    right = contributions if other is None else other
    check_widths(contributions.width, right.width)
    mine, theirs = (
        functional.normalize(torch.stack([part.mean for part in c.parts]).double(), dim=1)
        for c in (contributions, right)
    )
    measure = "cosine of means"
    return SimilarityMatrix(
        contributions.units, right.units, mine @ theirs.T, measure, other is None
    )


def image_cosine(
    contributions: Contributions, other: Contributions | None = None
) -> SimilarityMatrix:
    """Mean over the images n of the cosine of x_u(n) and x_v(n), means included, in [−1, 1].

    The columns are the `other`'s units, of the same images; None for the same.

    Raises:
        ResiDualError: readouts of different widths, or other images.
    """

    def rows(part: UnitContribution) -> Rows:
        return lambda index: functional.normalize(
            replace(part, coordinates=_wide(part.coordinates[index])).full(), dim=1
        )

    return _compared(contributions, other, rows, "cosine per image")


def correlation(
    contributions: Contributions, other: Contributions | None = None
) -> SimilarityMatrix:
    """Mean over the readout's d coordinates of Pearson's correlation over images, in [−1, 1].

    A coordinate along which a unit does not vary counts as 0. The columns are the `other`'s units,
    of the same images; None for the same.

    Raises:
        ResiDualError: readouts of different widths, or other images.
    """

    def rows(part: UnitContribution) -> Rows:
        axes, middle = part.components.double(), part.coordinates.double().mean(0)
        centred = part.coordinates.double() - middle
        covariance = centred.T @ centred / len(centred)
        variances = ((covariance @ axes) * axes).sum(0).clamp_min(0)  # of Φᵀ C Φ, the diagonal
        # what is left of a coordinate that is constant is rounding, not variance
        flat = variances <= 1e-12 * variances.max()
        scale = torch.where(flat, 0.0, variances.rsqrt())
        scaled = axes * scale
        kind = torch.promote_types(part.coordinates.dtype, torch.float32)
        return lambda index: ((part.coordinates[index].double() - middle) @ scaled).to(kind)

    measure = "correlation over images"
    return _compared(contributions, other, rows, measure, among=contributions.width)


def relative_similarity(
    contributions: Contributions,
    other: Contributions | None = None,
    *,
    anchors: int | Tensor = 128,
    seed: int = 0,
) -> SimilarityMatrix:
    """Mean over images of the cosine of two units' relative representations, in [−1, 1].

    L. Moschella et al., Relative representations enable zero-shot latent space communication, ICLR
    2023 (arXiv 2209.15430): r_u(n) holds the cosines of unit u's contribution to image n with its
    contributions to A anchor images, here about the unit's mean, since means are large against what
    varies. It does not change when a space is rotated or scaled, so that models of different widths
    compare. Anchors are so many images drawn with `seed`, all at most, or which (A,).

    Raises:
        ResiDualError: other images, or anchors that are none of them.
    """
    chosen = _anchors(anchors, len(contributions), seed)

    def rows(part: UnitContribution) -> Rows:
        directions = functional.normalize(_wide(part.coordinates[chosen]), dim=1).T

        def relative(index: Tensor) -> Tensor:
            here = functional.normalize(_wide(part.coordinates[index]), dim=1)
            return functional.normalize(here @ directions, dim=1)

        return relative

    measure = f"cosine of relative representations, {len(chosen)} anchors"
    return _compared(contributions, other, rows, measure, len(chosen))


def _anchors(anchors: int | Tensor, images: int, seed: int) -> Tensor:
    if isinstance(anchors, int):
        if anchors < 1:
            raise ResiDualError(f"wanted at least one anchor image, got anchors={anchors}.")
        return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:anchors]
    if anchors.ndim != 1 or not len(anchors) or ((anchors < 0) | (anchors >= images)).any():
        raise ResiDualError(
            f"wanted anchors as indices of the {images} images, got {anchors.tolist()}."
        )
    return anchors


def _compared(
    contributions: Contributions,
    other: Contributions | None,
    rows: Callable[[UnitContribution], Rows],
    measure: str,
    width: int | None = None,
    among: int = 1,
) -> SimilarityMatrix:
    """Mean over images, and `among` so many, of the products r_u(n) · r_v(n) of pairs of units.

    These are so wide, or as readouts are, which then have one width.
    """
    right = contributions if other is None else other
    if width is None:
        check_widths(width := contributions.width, right.width)
    if len(contributions) != len(right):
        raise ResiDualError(
            f"wanted what two models wrote for the same images, got {len(contributions)} and "
            f"{len(right)}: collect both from the same batches, in the same order."
        )
    mine = [rows(part) for part in contributions.parts]
    theirs = mine if other is None else [rows(part) for part in right.parts]
    total = torch.zeros(len(mine), len(theirs), dtype=torch.float64)
    block = max(1, _NUMBERS // (width * max(len(mine), len(theirs))))
    for index in torch.arange(len(contributions)).split(block):
        left = torch.stack([rows_of(index) for rows_of in mine]).flatten(1)
        same = left
        if other is not None:
            same = torch.stack([rows_of(index) for rows_of in theirs]).flatten(1)
        total += (left @ same.to(left.dtype).T).double()
    values = total / len(contributions) / among
    return SimilarityMatrix(contributions.units, right.units, values, measure, other is None)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision neither sums nor holds what products add up to."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
