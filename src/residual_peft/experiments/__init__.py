"""Methods side by side on one task: registry, baselines, runner, results."""

from .lora import LoraSettings
from .methods import METHODS, Method
from .results import Row, Summary, summarize
from .runner import Task, run_method

__all__ = [
    "METHODS",
    "LoraSettings",
    "Method",
    "Row",
    "Summary",
    "Task",
    "bench",
    "run_method",
    "summarize",
]
