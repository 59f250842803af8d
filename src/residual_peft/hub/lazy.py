"""Names of a package that are imported when they are first used."""

import importlib
from collections.abc import Callable
from typing import Any


def imported_when_used(package: str, module: str, names: tuple[str, ...]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are those of one of its modules."""

    def of_module(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    return of_module
