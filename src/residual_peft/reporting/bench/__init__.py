"""The rows of a bench -> tables in Markdown and LaTeX, and HTML pages with radars and bars."""

from .forms import write_summaries

__all__ = ["write_summaries"]
