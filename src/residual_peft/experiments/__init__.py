"""Methods side by side on one task: registry, baselines, runner, results."""

from .lora import LoraSettings
from .runner import METHODS, Method, Row, Summary, Task, run_method, summarize

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
