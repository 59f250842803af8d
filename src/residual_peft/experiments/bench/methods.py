"""Every method of a bench, by the name that registries call it."""

from collections.abc import Callable

from .backbones import BACKBONES
from .descent import Training
from .fits import FITS, Fit, Fitted
from .readouts import READOUTS


def _on_rows(fit: Fit) -> Callable[[Training], Fitted]:
    return lambda training: fit(training.rows)


METHODS: dict[str, Callable[[Training], Fitted]] = {
    **{name: _on_rows(fit) for name, fit in FITS.items()},
    **READOUTS,
    **BACKBONES,
}
"""By name, in the order of a table: training images -> what a fit on them came to."""
USUAL = tuple(name for name in METHODS if name not in BACKBONES)
"""Of a registry that names none: those that train the backbone take hours, the others seconds."""
