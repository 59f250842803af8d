"""Discriminant analysis from sums of features: no row is kept."""

import torch

from ...errors import ResiDualError
from .discriminant import Covariance, oas, shrinkage_of
from .head import ClassHead
from .smoother import scales_of
from .statistics import HeadStatistics


def discriminant_from_statistics(
    statistics: HeadStatistics, *, shrinkage: float | None = None, power: float = 0.5
) -> ClassHead:
    """The same head from sums alone: images may be added, forgotten or spread over processes.

    Equal to `fit_discriminant` on the rows with the same shrinkage, but for a and τ, which need
    left-out predictions: they are 0 and 1. K × K memory.

    Args:
        statistics: of images with one label each, some of every class, of weight 1.
        shrinkage: ρ; None for OAS.
        power: p of the scales.

    Raises:
        ResiDualError: a class without images; a shrinkage that leaves no inverse.
    """
    counts, total, columns = statistics.counts, statistics.total, statistics.columns
    if not (counts > 0).all():
        missing = (counts <= 0).nonzero().flatten().tolist()
        raise ResiDualError(
            f"wanted images of every class to take class means, got none of class {missing[0]}: "
            "add some, or remove that class."
        )
    centre = statistics.sums / total
    spread = statistics.squares.diagonal() / total - centre.square()
    scale = scales_of(spread, power)
    centres = (statistics.class_sums / counts[:, None] - centre) / scale
    # Σ c̃ c̃ᵀ less the class means' part is the scatter about them
    whole = statistics.squares / total - torch.outer(centre, centre)
    scatter = whole / torch.outer(scale, scale) - (centres * (counts / total)[:, None]).mT @ centres
    trace, squares = float(scatter.trace()), float(scatter.square().sum())
    if shrinkage is None:
        shrinkage = oas(trace, squares, total, columns)
    share = shrinkage_of(scatter, shrinkage)
    level = share * trace / columns
    root, failed = torch.linalg.cholesky_ex(
        (1 - share) * scatter + level * torch.eye(columns, dtype=torch.float64)
    )
    if int(failed):
        raise ResiDualError(
            f"wanted a covariance with an inverse, got one of {statistics.rows} images in "
            f"{columns} columns with a shrinkage of {share:g}: give more of it."
        )
    directions = Covariance(level, None, root).solve(centres)
    offset = (counts / total).log() - 0.5 * (directions * centres).sum(1)
    return ClassHead(statistics.origin + centre, scale, directions.mT.contiguous(), offset)
