"""The rows of a bench -> tables in Markdown and LaTeX, and HTML pages with radars and bars."""

from .forms import latex, leaderboard, markdown, page, write_summaries
from .tables import Bar, Table, tables

__all__ = [
    "Bar",
    "Table",
    "latex",
    "leaderboard",
    "markdown",
    "page",
    "tables",
    "write_summaries",
]
