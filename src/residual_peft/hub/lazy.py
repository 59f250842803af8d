"""Names of a package that are imported when they are first used."""

import importlib
from collections.abc import Callable
from typing import Any


def imported_when_used(package: str, **modules: tuple[str, ...]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are those of some of its modules."""
    homes = {name: module for module, names in modules.items() for name in names}

    def of_module(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return of_module
