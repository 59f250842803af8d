"""The command line: one file per subcommand, arguments in, a call of `app`, messages out.

Nothing here computes, and nothing heavy is imported before a command runs: `--help` and a mistyped
folder are answered at once.
"""

from .program import main

__all__ = ["main"]
