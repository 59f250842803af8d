"""What the command line says of an error, and how it keeps the terminal to itself."""

import logging
import sys
import warnings

from ..data.progress import Bar
from ..errors import ResiDualError, missing_extra, printable
from ..hub.places import number_of, reason_of


def one_line(error: BaseException) -> str | None:
    """An error that a user can mend, on one line; None for a bug."""
    if isinstance(error, ResiDualError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory ran out; take a smaller --batch-size or fewer --num-workers."
    if (missing := missing_extra(error)) is not None:
        return str(missing)
    if number_of(error) is not None:
        return printable(f"stopped: {reason_of(error)}.")
    return None


class _Notes(logging.Handler):
    """What this package has to say besides, each on a line of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """To whatever standard error is now."""
        _note(self.format(record))


_NOTES = _Notes(logging.INFO)


def _note(text: str) -> None:
    print(printable(f"note: {text}"), file=sys.stderr, flush=True)


def quiet() -> None:
    """Leave the terminal to this program's own bars and messages; without one, a line per stage."""
    Bar.in_a_log = not sys.stderr.isatty()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # transformers' and PEFT's notices to each other about names that will change
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    # PEFT asks the Hub for the bundled model's vocabulary, which no method here changes
    warnings.filterwarnings("ignore", message="Could not find a config file")
    # without the line of code, which is nothing to a user
    warnings.showwarning = lambda message, *_, **__: _note(str(message))
    ours = logging.getLogger(__package__.partition(".")[0])
    ours.setLevel(logging.INFO)
    ours.addHandler(_NOTES)  # once, however often it is called
