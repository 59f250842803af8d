"""What all commands share: how they run and are explained, how they speak, what an error says."""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from ..data.progress import Bar
from ..errors import ResiDualError, missing_extra, printable, printable_lines
from ..hub.places import check_place, number_of, reason_of

NOBODY_READS = 141
"""The status that a shell gives to what a closed pipe ended."""


class Interrupted(Exception):
    """Ctrl-C, past what typer makes of it; its text is for the user."""


class _Command(TyperCommand):
    example = ""

    def invoke(self, ctx: Any) -> Any:
        """Run it; Ctrl-C ends it with one line, and whoever reads no more, as `head`, with none."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(str(error) or "interrupted.") from error
        except BrokenPipeError as error:
            _to_nobody()
            raise typer.Exit(NOBODY_READS) from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The usual help, and an example below it, its lines as they are."""
        super().format_help(ctx, formatter)
        formatter.write(f"\nExample:\n{self.example}")


def _to_nobody() -> None:
    """What is left to be written goes nowhere: Python tries once more as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@dataclass(frozen=True)
class Explained:
    """A command, and the class by which typer runs and explains it."""

    run: Callable[..., None]
    cls: type[TyperCommand]


def example(text: str) -> Callable[[Callable[..., None]], Explained]:
    """A command whose help ends with an example: a line of shell and its output."""
    first, *others = text.strip("\n").splitlines()

    class Command(_Command):
        example = "\n".join([f"  $ {first}", *(f"  {line}".rstrip() for line in others)])

    return lambda run: Explained(run, Command)


_SETTING = re.compile(
    r"\w\([^()]*\)"  # a call, which stays as it is
    r"|(?<![\w'./=-])([a-z]+(?:_[a-z]+)*)=('[^']*'|True|\.\.\.|[A-Z]+\b|\d[\d.]*\d|\d)"
)


def as_typed(message: str, options: Container[str]) -> str:
    """A message in the words of the command line, where it says what to set.

    >>> as_typed("fit one (method='ridge'); max_bad=0.05 allows 3.", {"--method", "--max-bad"})
    'fit one (--method ridge); --max-bad 0.05 allows 3.'
    >>> as_typed("use trainer=True, or load(dtype='float32').", {"--trainer", "--dtype"})
    "use --trainer, or load(dtype='float32')."
    """

    def typed(match: re.Match[str]) -> str:
        option = f"--{(match[1] or '').replace('_', '-')}"
        if option not in options:
            return match[0]
        value = match[2].strip("'")
        return option if value == "True" else f"{option} {value}"

    return _SETTING.sub(typed, message)


def begin(text: str) -> None:
    """A first line at once, then the imports that take seconds."""
    print(printable(text), file=sys.stderr, flush=True)
    quiet()


def check_file(path: Path | None) -> None:
    """Before any work: a file that can be written, where one is named.

    Raises:
        ResiDualError: it is a folder, or cannot be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise ResiDualError(f"wanted a file to write to, got the directory '{path}'.")
    check_place(path.parent)


def tell(lines: Iterable[str], value: Any = None) -> None:
    """Print lines for people, or in their place a value as JSON."""
    if value is None:
        print(printable_lines("\n".join(lines)))
    else:
        print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows of texts; the first column is to the left."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left")
    for cells in rows:
        table.add_row(*(escape(printable(cell)) for cell in cells))  # a name is no markup
    Console().print(table)


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
