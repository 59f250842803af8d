"""The command line: one file per subcommand, arguments in, a call of `app`, messages out.

Nothing here computes, and nothing heavy is imported before a command runs: `--help` and a mistyped
folder are answered at once.
"""

import sys

from ..errors import missing_extra

try:
    from .program import main
except ModuleNotFoundError as error:
    _missing = missing_extra(error)
    if _missing is None:
        raise

    def main() -> None:
        """Say what is not installed."""
        print(f"residual-peft: {_missing}", file=sys.stderr)
        sys.exit(2)


__all__ = ["main"]
