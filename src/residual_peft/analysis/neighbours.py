"""TwoNN: an intrinsic dimension from the two nearest neighbours of every point.

Distances are exact to float64 and memory grows with N, not with N².
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResiDualError

_CANDIDATES = 8


class TooFewPoints(ResiDualError):
    """Fewer than three different points, which have no two neighbours each."""


@dataclass(frozen=True)
class TwoNN:
    """An intrinsic dimension from the ratio of each point's two nearest distances.

    Attributes:
        dimension: of the line through the origin, as Facco et al. fit it; infinite where all ratios
            are 1, as on a grid.
        likelihood: the unbiased maximum-likelihood estimate over all ratios, (N − 1) / Σ log μ.
        points: N, how many points counted.
        duplicates: how many did not, being the same as another one.
    """

    dimension: float
    likelihood: float
    points: int
    duplicates: int


def two_nn(
    points: Tensor, *, discard: float = 0.1, block: int = 512, resolution: float | None = None
) -> TwoNN:
    """Estimate the intrinsic dimension of a cloud of points by their two nearest neighbours.

    E. Facco, M. d'Errico, A. Rodriguez, A. Laio, Scientific Reports 7, 12140 (2017): where the
    density is locally constant, the ratio μ of a point's second to its first distance follows
    F(μ) = 1 − μ^−D, so that −log(1 − i/N) against the i-th smallest log μ is a line through the
    origin of slope D. `likelihood` is the estimate of that distribution's D without a fit; it
    discards nothing and so feels outliers more.

    A point that lies on another has no ratio. Of points closer than `resolution` one stays and
    `duplicates` counts the others: two copies of an image say nothing of a dimension.

    Args:
        points: (N, k), of any float dtype; distances are exact to float64.
        discard: share of the largest ratios that the fit leaves out.
        block: rows of distances held at a time: `block` × N float64 numbers.
        resolution: below what share of the points' root mean square distance from their mean two
            points are the same; None for ten units of rounding of their dtype. Images that ran in
            different batches differ by more: 1e-4 finds their copies in float32.

    Raises:
        ResiDualError: not a matrix of finite numbers, fewer than three different points, or a
            `discard` that leaves none.

    Examples:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <...>
        >>> plane = torch.rand(1000, 2) @ torch.linalg.qr(torch.randn(20, 2))[0].T
        >>> round(two_nn(plane).dimension)
        2
    """
    if not 0 <= discard < 1:
        raise ResiDualError(f"wanted a share to discard in [0, 1), got discard={discard}.")
    if points.ndim != 2 or not points.is_floating_point() or not bool(points.isfinite().all()):
        raise ResiDualError(
            f"wanted points as a matrix (N, k) of finite numbers, got {tuple(points.shape)} of "
            f"{points.dtype}, finite: {bool(points.isfinite().all())}."
        )
    count = len(points)
    distances = _distinct_distances(points, block, resolution)
    left = len(distances)
    logs = (distances[:, 1] / distances[:, 0]).log().sort().values
    kept = min(max(int(left * (1 - discard)), 1), left - 1)  # the last of all has log(1 − 1)
    ranks = torch.arange(1, kept + 1, dtype=logs.dtype, device=logs.device)
    heights, x = -torch.log1p(-ranks / left), logs[:kept]
    return TwoNN(
        dimension=float(heights @ x / (x @ x)) if bool(x.any()) else math.inf,
        likelihood=float((left - 1) / logs.sum()),
        points=left,
        duplicates=count - left,
    )


def _distinct_distances(points: Tensor, block: int, resolution: float | None) -> Tensor:
    """The two nearest distances (N', 2) of the points that are left when copies are taken out."""
    count = len(points)
    share = 10 * torch.finfo(points.dtype).eps if resolution is None else resolution
    points = points.unique(dim=0).double()
    closest = share * float((points - points.mean(0)).square().sum(1).mean().sqrt())
    while len(points) >= 3:
        distances, nearest = two_nearest(points, block)
        # of two that are each other's nearest one comes later: every round takes some out
        copies = nearest < torch.arange(len(points), device=points.device)
        copies &= distances[:, 0] <= closest
        if not bool(copies.any()):
            return distances
        points = points[~copies]
    raise TooFewPoints(
        f"TwoNN needs at least three different points, got {len(points)} among {count}: give "
        "more images, or leave out a unit that writes the same to all."
    )


def two_nearest(points: Tensor, block: int = 512) -> tuple[Tensor, Tensor]:
    """Distances (N, 2) to the two nearest other points, increasing, and the nearest's row (N,).

    Squared distances from one matrix product per block of rows pick eight candidates; theirs are
    then computed from differences, in float64, so that points far from the origin or close together
    lose no digits. A row whose candidates the product's rounding leaves in doubt is done from
    differences as a whole. Memory is `block` × N float64 numbers, 200 MB for 512 and 50,000.
    """
    points = points.double()
    centred = points - points.mean(0)  # the product's rounding is relative to the squared norms
    norms = centred.square().sum(1)
    # centring, and k + 3 roundings of |x|² - 2 x·y + |y|²: each at most eps (|x| + |y|)²
    slack = (points.shape[1] + 9) * torch.finfo(points.dtype).eps
    bound = slack * (norms.sqrt() + norms.max().sqrt()).square()
    count = min(_CANDIDATES, len(points) - 1)
    space = points.new_empty(min(block, len(points)), len(points))
    distances = points.new_empty(len(points), 2)
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for rows in torch.arange(len(points), device=points.device).split(block):
        rough = torch.addmm(norms, centred[rows], centred.T, alpha=-2, out=space[: len(rows)])
        rough[torch.arange(len(rows), device=rows.device), rows] = torch.inf
        values, who = rough.topk(count, largest=False)
        exact = (points[who] - points[rows, None]).norm(dim=2)
        distances[rows], order = exact.topk(2, largest=False)
        nearest[rows] = who.gather(1, order[:, :1]).squeeze(1)
        if count < len(points) - 1:
            # every other point is at least as far as the last candidate, up to the rounding
            reach = values[:, -1] + norms[rows] - bound[rows]
            doubtful = rows[distances[rows, 1].square() > reach]
            distances[doubtful], nearest[doubtful] = _from_differences(points, doubtful)
    return distances, nearest


def _from_differences(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `two_nearest` gives for some rows, without the matrix product: slower by far."""
    distances = points.new_empty(len(rows), 2)
    nearest = torch.empty_like(rows)
    for part in torch.arange(len(rows), device=rows.device).split(64):
        mode = "donot_use_mm_for_euclid_dist"
        found = torch.cdist(points[rows[part]], points, compute_mode=mode)
        found[torch.arange(len(part), device=rows.device), rows[part]] = torch.inf
        distances[part], who = found.topk(2, largest=False)
        nearest[part] = who[:, 0]
    return distances, nearest
