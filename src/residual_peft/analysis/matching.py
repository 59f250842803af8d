"""The normalized spectral cosine: greedy matching of directions, many pairs of units at once."""

import math
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import ResiDualError

_CHUNK = 2**19  # numbers in one batch of |X Yᵀ|: 4 MB in float64, which a core's cache holds


def spectral_cosine(x: Tensor, a: Tensor, y: Tensor, b: Tensor, *, weighted: bool = True) -> float:
    """The normalized spectral cosine of two units, in [0, 1]; NaN where one has no direction.

    S = |x yᵀ| ⊙ (a bᵀ); take the largest entry, strike its row and column, min(k_x, k_y) times. The
    norm of what was taken over the norm of (a_i b_i)_i: 1 for equal directions and proportional
    eigenvalues, 0 for orthogonal spans. The weights are the eigenvalues λ themselves (variances,
    not singular values; their unit does not matter). Unweighted, a = b = 1: all directions count
    alike, each against its closest free one whatever their ranks. x (k_x, d) and y (k_y, d) have
    orthonormal rows, a (k_x,) and b (k_y,) decrease.

    Raises:
        ResiDualError: the directions are of different widths.
    """
    check_widths(x.shape[1], y.shape[1])
    one, other = Side([x], [a], weighted), Side([y], [b], weighted)
    return float(one.against(0, other, 0, 1))


def check_widths(width: int, other: int) -> None:
    """Refuse readouts whose directions cannot be compared.

    Raises:
        ResiDualError: the widths differ.
    """
    if width != other:
        raise ResiDualError(
            f"wanted directions in one readout, got widths {width} and {other}: directions of "
            "models of different width cannot be compared. relative_similarity compares what "
            "their units wrote for the same images."
        )


class Side:
    """Units whose directions are stacked for one product with a unit of the other side."""

    def __init__(self, directions: list[Tensor], weights: list[Tensor], weighted: bool) -> None:
        self.counts = [len(block) for block in directions]
        self.starts = list(accumulate(self.counts, initial=0))
        self.stack = torch.cat(directions).double()
        # the score is that of proportional weights: by the largest, so that nothing underflows
        self.weights = [
            w.double() / w[:1].double() if weighted else torch.ones_like(w).double()
            for w in weights
        ]

    def against(self, index: int, other: "Side", start: int, stop: int) -> Tensor:
        """Scores of unit `index` against units start to stop of the other side, (stop − start,)."""
        mine = self.stack[self.starts[index] : self.starts[index + 1]]
        counts = other.counts[start:stop]
        if not len(mine) or not max(counts):
            return mine.new_full((stop - start,), math.nan)
        theirs = other.stack[other.starts[start] : other.starts[stop]]
        # zeros where a unit has fewer directions than others add nothing to either norm
        b = pad_sequence(other.weights[start:stop], batch_first=True)  # (m, k)
        s = pad_sequence((theirs @ mine.T).abs_().split(counts), batch_first=True)
        a = self.weights[index]
        s = s.mul_(b[:, :, None]).mul_(a)  # (m, k, k_index)
        k = min(s.shape[1:])
        whole = (a[:k] * b[:, :k]).square().sum(1)
        return (_taken(s) / whole).sqrt()  # 0 / 0 is NaN: no direction

    def chunks(self, rows: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Runs of units from `start` on whose products with `rows` directions fit the cache."""
        while start < len(self.counts):
            stop, most = start + 1, max(self.counts[start], 1)
            while stop < len(self.counts):
                most = max(most, self.counts[stop])
                if most * rows * (stop + 1 - start) > _CHUNK:
                    break
                stop += 1
            yield start, stop
            start = stop


def _taken(s: Tensor) -> Tensor:
    """Sum of squares of the entries that the greedy matching takes, (P,), for P matrices at once.

    Of s (P, r, c), not negative. Keeps each row's best free entry, so that a step looks at r
    numbers instead of r × c, and looks again only at rows whose best one's column was struck. What
    is struck becomes zero: taking it afterwards adds nothing.
    """
    if s.shape[1] > s.shape[2]:
        s = s.mT.contiguous()
    pairs, steps, columns = s.shape
    each = torch.arange(pairs, device=s.device)
    best, where = s.max(2)
    free = s.new_ones(pairs, columns)
    total = s.new_zeros(pairs)
    for step in range(steps):
        value, row = best.max(1)
        square = value.square()
        total += square
        # no later entry is larger: all that are left change no digit
        if bool(((steps - step - 1) * square <= 1e-17 * total).all()):
            break
        column = where[each, row]
        free[each, column] = 0
        best[each, row] = 0
        pair, stale = ((where == column[:, None]) & (best > 0)).nonzero(as_tuple=True)
        best[pair, stale], where[pair, stale] = (s[pair, stale] * free[pair]).max(1)
    return total
