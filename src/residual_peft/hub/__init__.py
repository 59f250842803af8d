"""Names and paths <-> directories: local or Hub id, whole-or-nothing files, push, cards.

`__all__` here and in every room names the modules that other rooms may import from.

Names are imported when they are first used: the command line looks at places before it waits for
the Hub's client and torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .directories import DEMO_MODEL, local_directory

__all__ = [
    "DEMO_MODEL",
    "cards",
    "directories",
    "facts",
    "files",
    "local_directory",
    "model_files",
    "places",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in ("DEMO_MODEL", "local_directory"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import directories

    return getattr(directories, name)
