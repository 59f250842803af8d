"""The command line: arguments in, a call of `app`, messages out."""

from .commands import main

__all__ = ["main"]
