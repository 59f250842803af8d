"""Every method of a bench, by the name that registries call it."""

from collections.abc import Callable
from dataclasses import dataclass

from .backbones import BACKBONES
from .descent import Training
from .fits import FITS, Fit, Fitted
from .readouts import READOUTS


@dataclass(frozen=True)
class Method:
    """A way to fit."""

    fit: Callable[[Training], Fitted]  # training images -> what it came to
    # whether it goes back through the backbone, which takes hours where the others take seconds: a
    # registry that names no methods is without it
    backwards: bool = False


def _on_rows(fit: Fit) -> Method:
    return Method(lambda training: fit(training.rows))


METHODS: dict[str, Method] = {
    **{name: _on_rows(fit) for name, fit in FITS.items()},
    **{name: Method(fit) for name, fit in READOUTS.items()},
    **{name: Method(fit, backwards=True) for name, fit in BACKBONES.items()},
}
"""By name, in the order of a table."""
USUAL = tuple(name for name, method in METHODS.items() if not method.backwards)
"""Of a registry that names none."""
