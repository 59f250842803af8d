"""Numbers that come from outside, looked at once where they enter an adapter."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ResiDualError
from .saved import check_values

TOLERANCE = 0.02  # how far rows that were rounded to bfloat16 (2⁻⁹) may be from orthonormal

NEGLIGIBLE = 1e-9
"""Of a unit's largest eigenvalue: directions with less carry rounding errors alone."""


def check_parts(means: Tensor, eigenvalues: Tensor, total_variance: Tensor, what: str) -> None:
    """`check_values` of all of a basis but its directions."""
    check_values(means, "means", what)
    check_values(eigenvalues, "eigenvalues", what)
    check_values(total_variance, "total_variance", what)


def check_directions(directions: Iterable[tuple[str, Tensor, Tensor]], what: str) -> None:
    """Refuse directions that are not orthonormal: their coordinates would not be coordinates.

    Directions without variance may be shorter: they need not lie where their unit writes, and only
    the part that does is stored. Of each unit come name, rows (k, n) and eigenvalues (k,); `what`
    begins the message: whose they are.
    """
    units = [
        (name, rows, values) for name, rows, values in directions if len(rows) and not rows.is_meta
    ]
    if not units:
        return
    errors = torch.stack([_error(rows, values) for _, rows, values in units])
    worst = int(errors.argmax())  # of NaN, too
    if not errors[worst] <= TOLERANCE:
        raise ResiDualError(
            f"{what}: the directions of {units[worst][0]} are not orthonormal (off by "
            f"{float(errors[worst]):.1e}, where {TOLERANCE} is allowed): the file "
            "was damaged or changed. Save, download or fit it again."
        )


def _error(rows: Tensor, eigenvalues: Tensor) -> Tensor:
    rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
    gram = rows @ rows.T
    matters = (eigenvalues > NEGLIGIBLE * eigenvalues.amax()).to(gram)
    error = (gram - torch.eye(len(gram)).to(gram)) * matters * matters[:, None]
    return torch.maximum(error.abs().amax(), (gram.diagonal() - 1).amax())
