"""Which few atoms of a dictionary rebuild a matrix or a direction: SOMP, OMP and TextSpan.

Tensors in, tensors out. Atoms Θ (M, d) have unit norm. What is explained may be given in few
dimensions, as c (N, k) in orthonormal rows Φ (k, d) (the `frame`), and stands for X = c Φ. Nothing
of size (N, d) is formed, and fits are still those in R^d: with Q the orthonormal rows that the
chosen atoms span, the residual X (I − QᵀQ) meets the atoms as

    E Θᵀ = c [Φ (I − QᵀQ) Θᵀ]                                 (N, M) = (N, k)(k, M)

where (I − QᵀQ) acts in R^d, on the part of an atom that lies outside of the frame, too.

Two rules hold everywhere. Of atoms that score alike up to rounding (1e-6), the first is chosen: an
atom that occurs twice is chosen once. And choosing ends early once no atom scores more than
rounding (1e-6 of X's own size): X is explained, or what is left of it meets no atom.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResiDualError

_ROUNDING = 1e-6
_CHUNK = 1 << 24  # numbers in the largest scratch tensor


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Atoms in the order in which they were chosen.

    Attributes:
        indices: (s,), or (B, s) of B directions, −1 where choosing had ended.
        explained: of the same shape, float64: the share of Σ_n |X_n|² that lies in the span of the
            atoms chosen so far (for TextSpan, of their parts in the span of X).
        coefficients: how the atoms are added up, in the fit on all of them: (N, s) for SOMP, the
            shape of `indices` for OMP, None for TextSpan, which fits none.
    """

    indices: Tensor
    explained: Tensor
    coefficients: Tensor | None = None


@torch.no_grad()
def somp(x: Tensor, atoms: Tensor, steps: int, *, frame: Tensor | None = None) -> Pursuit:
    """Simultaneous orthogonal matching pursuit: few atoms for all rows of X at once.

    E = X; repeat: pick the atom with the largest Σ_n |E_n · θ_t|, refit X on all atoms chosen by
    least squares in R^d, E = X − fit (Tropp et al. 2006; `method.md`, section 6). X (N, d), or its
    coordinates (N, k) in the frame (k, d), is not centred here. Atoms (M, d) have rows of unit
    norm. Scores are summed in X's own precision, directions in float64.

    Raises:
        ResiDualError: shapes that do not fit, or more steps than atoms.
    """
    rows, rest, axes = _checked(x, atoms, steps, frame)
    inside = axes @ rest.T  # Φ (I − QᵀQ) Θᵀ
    size, total = rows.double().norm(dim=1).sum(), rows.double().square().sum()
    chosen: list[int] = []
    directions: list[Tensor] = []
    while len(chosen) < steps:
        best = _best(_absolute_sums(rows, inside), size)
        if best is None:
            break
        chosen.append(best)
        direction = rest[best] / rest[best].norm()
        along = rest @ direction
        rest = rest - along[:, None] * direction
        inside = inside - (axes @ direction)[:, None] * along
        directions.append(direction)
    span = torch.stack(directions) if directions else atoms.new_empty(0, atoms.shape[1]).double()
    parts = rows.double() @ (axes @ span.T)  # X Qᵀ
    return Pursuit(
        indices=torch.tensor(chosen, dtype=torch.long, device=atoms.device),
        explained=parts.square().sum(0).cumsum(0) / total,
        coefficients=_solve(atoms.double()[chosen] @ span.T, parts).to(rows.dtype),
    )


@torch.no_grad()
def omp(directions: Tensor, atoms: Tensor, steps: int) -> Pursuit:
    """Orthogonal matching pursuit of many directions (B, d), or of one (d,), each by itself.

    For each direction v: E = v; repeat: pick the atom with the largest |E · θ_t|, refit v on all
    atoms chosen by least squares, E = v − fit (Pati et al. 1993). The same as `somp` of the one row
    v; the same as scikit-learn's `orthogonal_mp`, which does not go on past linear dependence
    either. What is found has the shape (B, steps), or (steps,).

    Raises:
        ResiDualError: shapes that do not fit, or more steps than atoms.
    """
    if directions.ndim == 1:
        found = omp(directions[None], atoms, steps)
        assert found.coefficients is not None
        return Pursuit(found.indices[0], found.explained[0], found.coefficients[0])
    rows, exact, _ = _checked(directions, atoms, steps, None)
    parts = rows.double().split(max(_CHUNK // len(atoms), 1))
    found_parts = [_omp(part, exact, steps) for part in parts]
    indices, explained, coefficients = map(torch.cat, zip(*found_parts, strict=True))
    return Pursuit(indices, explained, coefficients.to(rows.dtype))


@torch.no_grad()
def text_span(
    x: Tensor, atoms: Tensor, steps: int, *, rank: int = 80, frame: Tensor | None = None
) -> Pursuit:
    """TextSpan of Gandelsman et al. (2024), algorithm 1: the atoms along which X varies most.

    Project Θ on the span of X's first `rank` right singular vectors; repeat: pick the atom t with
    the largest standard deviation of X θ_tᵀ, take its direction out of X and of Θ. Atoms are not
    normalized again: one that lies outside of the span for the most part scores low. Only X's
    covariance is needed, and choosing ends when the span is used up. X, atoms and frame are as for
    `somp`.

    Two differences from their code: X is centred before the singular vectors are taken, as it is
    for the standard deviation; and vectors along which X does not vary, of which `rank` may ask for
    some (a head has fewer than 80), are left out, where theirs keeps arbitrary ones.

    Raises:
        ResiDualError: shapes that do not fit, more steps than atoms, or a rank below 1.
    """
    rows, exact, axes = _checked(x, atoms, steps, frame)
    if rank < 1:
        raise ResiDualError(f"wanted at least one singular vector to span with, got rank={rank}.")
    centred = rows.double() - rows.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values, vectors = values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    total = centred.square().sum()
    size = total.sqrt().maximum(_ROUNDING * rows.double().norm())  # rows all equal vary by rounding
    rest = exact @ axes.T @ (vectors * (values > _ROUNDING**2 * total))  # (M, r), inside the span
    chosen: list[int] = []
    explained = [total.new_zeros(())]
    while len(chosen) < steps:
        best = _best((rest.square() @ values).sqrt(), size)
        if best is None:
            break
        chosen.append(best)
        direction = rest[best] / rest[best].norm()
        rest = rest - (rest @ direction)[:, None] * direction
        explained.append(explained[-1] + direction.square() @ values)
    return Pursuit(
        indices=torch.tensor(chosen, dtype=torch.long, device=atoms.device),
        explained=torch.stack(explained)[1:] / total,
    )


def _omp(targets: Tensor, atoms: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """OMP of some rows, float64."""
    rest, size = targets, targets.norm(dim=1)
    count, width = targets.shape
    span = targets.new_zeros(count, steps, width)
    indices = torch.full((count, steps), -1, device=targets.device)
    for step in range(steps):
        scores = (rest @ atoms.T).abs()
        best = _first_best(scores)
        going = scores.gather(1, best[:, None])[:, 0] > _ROUNDING * size
        direction = atoms[best]
        for _ in range(2):  # once more for what rounding left
            known = torch.einsum("bsd,bd->bs", span, direction)
            direction = direction - torch.einsum("bs,bsd->bd", known, span)
        direction = torch.nn.functional.normalize(direction, dim=1) * going[:, None]
        rest = rest - (rest * direction).sum(1, keepdim=True) * direction
        span[:, step] = direction
        indices[:, step] = torch.where(going, best, -1)
    parts = torch.einsum("bsd,bd->bs", span, targets)
    total = size.square().where(size > 0, 1)  # of no length at all: nothing explained
    ended = indices < 0
    triangle = torch.einsum("bsd,btd->bst", atoms[indices.clamp(min=0)], span)
    triangle = triangle.masked_fill(ended[:, :, None], 0) + ended.diag_embed()
    solved = _solve(triangle, parts[:, None])[:, 0]
    return indices, parts.square().cumsum(1) / total[:, None], solved


def _solve(triangle: Tensor, parts: Tensor) -> Tensor:
    """A with A Θ_S = fit, from Θ_S = L Q (L lower triangular) and X Qᵀ = A L."""
    return torch.linalg.solve_triangular(triangle.tril(), parts, upper=False, left=False)


def _absolute_sums(rows: Tensor, inside: Tensor) -> Tensor:
    """Σ_n |x_n · i_t| of every column t, without (N, M) in memory."""
    columns = inside.to(rows.dtype)
    parts = rows.split(max(_CHUNK // max(inside.shape[1], 1), 1))
    return sum(((part @ columns).abs().sum(0).double() for part in parts), inside.new_zeros(()))


def _best(scores: Tensor, size: Tensor) -> int | None:
    """The best atom; None where none scores more than rounding of what is to be explained."""
    best = int(_first_best(scores))
    return None if scores[best] <= _ROUNDING * size else best


def _first_best(scores: Tensor) -> Tensor:
    # not argmax alone: equal atoms must not take turns with the machine's rounding
    best = scores.max(dim=-1, keepdim=True).values
    return (scores >= best * (1 - _ROUNDING)).int().argmax(dim=-1)


def _checked(
    x: Tensor, atoms: Tensor, steps: int, frame: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """X in float32 or better, atoms and frame in float64."""
    if x.ndim != 2 or atoms.ndim != 2 or not len(x) or not len(atoms):
        raise ResiDualError(
            "wanted a matrix to explain and a matrix of atoms, one a row, neither empty; got "
            f"shapes {tuple(x.shape)} and {tuple(atoms.shape)}."
        )
    shape = (x.shape[1], atoms.shape[1])
    if shape != (shape[1], shape[1]) if frame is None else tuple(frame.shape) != shape:
        got = "no frame" if frame is None else f"a frame of shape {tuple(frame.shape)}"
        raise ResiDualError(
            f"wanted rows as wide as the atoms ({shape[1]}), or a frame of shape {shape}; got rows "
            f"of width {shape[0]} and {got}."
        )
    if not 1 <= steps <= len(atoms):
        raise ResiDualError(f"wanted from 1 to {len(atoms)} steps, one an atom, got {steps}.")
    if not (x.isfinite().all() and atoms.isfinite().all()):
        raise ResiDualError("there are NaN or infinite values in what to explain or in the atoms.")
    axes = torch.eye(shape[1], device=atoms.device) if frame is None else frame
    return x.to(torch.promote_types(x.dtype, torch.float32)), atoms.double(), axes.double()
