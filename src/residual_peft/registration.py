"""PEFT knows the method as soon as PEFT and this package are both imported, whichever comes first.

Importing PEFT takes seconds, and `residual-peft --help`, a look at a file or a plain `import
residual_peft` need none of it: where PEFT is not there yet, the method is entered in its tables at
the end of PEFT's own import. Nothing here imports PEFT or torch.
"""

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = "peft"
METHOD = "residual_peft.tuner"
"""Importing it registers the method. By name, as it stands below everything that is imported."""


def register_with_peft() -> None:
    """Register the method now where PEFT is imported, else when it will be."""
    if WATCHED in sys.modules:
        importlib.import_module(METHOD)
    elif not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())


class AfterImport:
    """A finder on `sys.meta_path` that finds what the others find, and removes itself once used.

    Asking where PEFT is, as transformers' `is_peft_available` does, imports nothing and leaves it
    in place. The spec found is the others' own, and so is its loader, which registers the method
    after the one call that runs the module.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for PEFT alone."""
        # another finder of this kind may ask all finders, and thereby this one, again
        if name != WATCHED or getattr(self._mine, "asking", False):
            return None
        self._mine.asking = True
        try:
            others = (finder for finder in sys.meta_path if finder is not self)
            found = (finder.find_spec(name, path, target) for finder in others)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._mine.asking = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader: Any) -> None:
        run = loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            # some loaders are shared by several modules
            if module.__name__ == WATCHED and self in sys.meta_path:
                loader.exec_module = run
                sys.meta_path.remove(self)
                importlib.import_module(METHOD)

        loader.exec_module = run_and_register
