"""Run a script as on a machine where only what some requirements name is installed.

python -m tests.only_required requirements.txt app.py
"""

import re
import runpy
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def name_of(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def needed(requirements: Iterable[str]) -> set[str]:
    """The packages that they name, and all that these need in turn, by their markers and extras."""
    todo = [Requirement(line) for line in requirements if line.strip()]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        key = name_of(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            lines = metadata.requires(wanted.name) or []
        except metadata.PackageNotFoundError:  # of another system
            continue
        for found in map(Requirement, lines):
            extras = ("", *wanted.extras)
            if found.marker is None or any(found.marker.evaluate({"extra": e}) for e in extras):
                todo.append(found)
    return {package for package, _ in seen}


class Hiding:
    """A finder that does not find some modules."""

    def __init__(self, inner: Any, hidden: set[str]) -> None:
        self.inner, self.hidden = inner, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        hidden = name.partition(".")[0] in self.hidden
        return None if hidden else self.inner.find_spec(name, path, target)


if __name__ == "__main__":
    known = needed(Path(sys.argv[1]).read_text().splitlines())
    owners = metadata.packages_distributions()
    hidden = {m for m, of in owners.items() if not known & set(map(name_of, of))}
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
    sys.argv = sys.argv[2:]
    print("hidden:", *sorted(hidden), flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")
