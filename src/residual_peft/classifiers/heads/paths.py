"""What logistic regression and the linear map minimise, and how strong its penalty is to be.

The strength is chosen on left-out folds, along a path of fits from strong to weak.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ResiDualError
from .finishing import finish, folds_of, log_losses, part_of
from .head import ClassHead, FittedHead
from .images import Images
from .left_out import LeftOut
from .minimising import scaled_minimum

RELATIVE_STRENGTHS = tuple(10.0**-k for k in range(-1, 7))
"""Times what makes them free of the number of images and of the features' scale."""
ENOUGH = 500  # images from which on one fold of them chooses the strength, at a fifth of the cost
_EQUAL = 1e-2  # of a loss
COARSE = 1e-5
"""Gradient per image of the fits that are only compared, in float32; at 1e-4 weak ridges stop so
early, from the last strength's fit on, that they pass for stronger ones."""


Path = tuple[tuple[float, float], ...]
"""Strengths, each with the log-loss of left-out images with a and τ fitted."""


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

    def scores(self, coefficients: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Logits (N, C) by an A for the images, or for some of them."""
        return self.begin[rows] + self._spread(self.rows[rows] @ coefficients)

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

        def function(coefficients: Tensor) -> tuple[Tensor, Tensor]:
            logits = begin + self._spread(products @ coefficients.to(dtype)).double()
            value = data.weights @ log_losses(logits, data)
            value = value + 0.5 * strength * coefficients[: len(penalty) - self.free].square().sum()
            slope = (weights * (labelling.probabilities(logits) - data.targets)).to(dtype)
            slope = slope if self.spread is None else slope @ self.spread.to(dtype).mT
            return value, (products.mT @ slope).double() + penalty * coefficients

        return scaled_minimum(function, start, root, tolerance * len(rows))

    def _spread(self, inner: Tensor) -> Tensor:
        return inner if self.spread is None else inner @ self.spread.to(inner)


@dataclass(frozen=True)
class PathFit(FittedHead):
    """A head at a strength that was chosen along a path."""

    strength: float  # α of ½ α ‖A‖² beside the sum of the images' losses
    path: Path  # as tried
    gradient_norm: float  # the largest entry of the gradient at the end, by A in the images' axes


@dataclass(frozen=True)
class FittedPath:
    """The A at the strength that was chosen, and all that goes with a head made of it."""

    coefficients: Tensor  # A (r, q)
    text_weight: float  # a
    temperature: float  # τ
    left_out: LeftOut
    strength: float
    path: Path
    gradient_norm: float

    def with_head(self, head: ClassHead) -> PathFit:
        """What there is to tell of a head that was made of A."""
        return PathFit(head, self.left_out, self.strength, self.path, self.gradient_norm)


def solve_at_best(
    problem: Problem,
    level: float,
    *,
    tolerance: float,
    default: float,
    strength: float | None,
    groups: Tensor | None,
    folds: int,
    start: Tensor | None = None,
    with_text: bool = True,
    patience: int = 1,
    coarse: float = COARSE,
) -> FittedPath:
    """A at the strength that was given, or the best of some by what is said of left-out folds.

    Those to choose from are `RELATIVE_STRENGTHS`, and two between them; they, and `default` where
    nothing can be left out, are times `level`. The last fit begins at `start`, or at 0; the other
    arguments are those of `_path`.

    Raises:
        ResiDualError: a strength that is not above 0.
    """
    relative = [level * times for times in RELATIVE_STRENGTHS]
    tried = relative if strength is None else [strength]
    if not min(tried) > 0:
        raise ResiDualError(f"wanted strengths of the penalty above 0, got {min(tried)}.")
    fold, known, how = folds_of(problem.data, groups, folds)
    path: list[tuple[float, float]] = []
    left: Tensor | None = None
    if fold is not None:
        path, left = _path(
            problem,
            fold,
            known,
            tried,
            with_text=with_text,
            patience=patience,
            coarse=coarse,
        )
        best = best_of(path)
    else:
        best = default * level if strength is None else strength
    found, norm = problem.solve(best, problem.zeros() if start is None else start, tolerance)
    left = problem.scores(found) if left is None else left
    finished = finish(left, problem.data, how, known, with_text=with_text)
    return FittedPath(found, *finished, best, tuple(path), norm)


def best_of(path: Sequence[tuple[float, float]]) -> float:
    """The strength of the least loss."""
    return min(path, key=lambda pair: pair[1])[0]


def _settled(path: Sequence[tuple[float, float]], patience: int) -> bool:
    """Whether the last, weakest penalty is worse, or none of the last better, by a hundredth."""
    losses = [loss for _, loss in path]
    if losses[-1] > min(losses) * (1 + _EQUAL):
        return True
    better = [a < min(losses[:n]) * (1 - _EQUAL) for n, a in enumerate(losses) if n]
    return len(better) >= patience and not any(better[-patience:])


def _path(
    problem: Problem,
    fold: Tensor,
    known: Tensor,
    strengths: Sequence[float],
    *,
    with_text: bool,
    patience: int,
    coarse: float,
) -> tuple[list[tuple[float, float]], Tensor]:
    """Left-out log-loss of the strengths tried, and the left-out logits (N, C) of the best.

    From strong to weak until `patience` of them in a row are no better; then, where there is a
    choice, between the best one and its neighbours. Where images are many, one fold of them is
    enough to choose by. The zero-shot logits are added, with their weight, to be compared, unless
    not `with_text`; `coarse` is the tolerance of the fits that are only compared.
    """
    count = int(fold.max()) + 1
    numbers = range(1 if len(fold) >= ENOUGH else count)
    told = known & (fold < len(numbers))
    starts: dict[int, Tensor] = {}  # each fold's last fit, at which its next one begins
    path: list[tuple[float, float]] = []
    found: dict[float, Tensor] = {}

    def left_out(strength: float, numbers: Iterable[int]) -> Tensor:
        logits = torch.zeros_like(problem.data.targets)  # 0 for images of other folds
        for number in numbers:
            outside = fold == number
            first = starts.get(number, problem.zeros())
            starts[number], _ = problem.solve(strength, first, coarse, ~outside)
            logits[outside] = problem.scores(starts[number], outside)
        return logits

    def tried(strength: float) -> None:
        found[strength] = left_out(strength, numbers)
        _, _, said = finish(found[strength], problem.data, "fold", told, with_text=with_text)
        path.append((strength, said.log_loss))

    for strength in strengths:
        tried(strength)
        if _settled(path, patience):
            break
    if len(path) > 1:
        best = best_of(path)
        for strength in (best * 10**0.5, best / 10**0.5):
            tried(strength)
        path.sort(reverse=True)
    best = best_of(path)
    return path, found[best] + left_out(best, range(len(numbers), count))
