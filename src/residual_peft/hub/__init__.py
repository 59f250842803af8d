"""Names and paths <-> directories: local or Hub id, whole-or-nothing files, push, cards.

`__all__` here and in every room names the modules that other rooms may import from.

Names are imported when they are first used: the command line looks at places before it waits for
the Hub's client and torch.
"""

from typing import TYPE_CHECKING

from .lazy import imported_when_used

if TYPE_CHECKING:
    from .directories import DEMO_MODEL, local_directory

__all__ = [
    "DEMO_MODEL",
    "cards",
    "directories",
    "facts",
    "files",
    "lazy",
    "local_directory",
    "machine",
    "model_files",
    "places",
]

__getattr__ = imported_when_used(__name__, directories=("DEMO_MODEL", "local_directory"))
