"""The rooms of the package, in their order, and its files."""

from pathlib import Path

import residual_peft

ROOT = Path(residual_peft.__file__).parent


ROOMS = (
    "registration",
    "errors",
    "hub",
    "data",
    "towers",
    "bases",
    "tuner",
    "classifiers",
    "solvers",
    "analysis",
    "experiments",
    "reporting",
    "demo",
    "app",
    "cli",
)


FILES = sorted(path for path in ROOT.rglob("*.py") if "metric_modules" not in path.parts)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]
