"""Names and paths <-> directories: local or Hub id, whole-or-nothing files, push, cards.

`__all__` here and in every room names the modules that other rooms may import from.
"""

from .directories import DEMO_MODEL, local_directory

__all__ = [
    "DEMO_MODEL",
    "cards",
    "directories",
    "files",
    "local_directory",
    "model_files",
    "places",
]
