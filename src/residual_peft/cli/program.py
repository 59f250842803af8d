"""The program: its commands, and how it ends.

Exit status: 0; 2 for what a user can mend, with one line; 130 after Ctrl-C; 1 for a bug, with its
traceback.
"""

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..app.messages import one_line
from ..errors import printable
from . import (
    analyse,
    bench,
    compare,
    convert,
    demo,
    evaluate,
    explain,
    explore,
    export,
    fit,
    look,
    merge,
    predict,
    push,
    report,
    update,
)
from .commands import Interrupted, as_typed, command_class

app = typer.Typer(
    help="Make a CLIP-like model good at your own images: look at them, fit, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo.demo, demo.EXAMPLE),
    "look": (look.look, look.EXAMPLE),
    "fit": (fit.fit, fit.EXAMPLE),
    "predict": (predict.predict, predict.EXAMPLE),
    "compare": (compare.compare, compare.EXAMPLE),
    "update": (update.update, update.EXAMPLE),
    "eval": (evaluate.evaluate, evaluate.EXAMPLE),
    "report": (report.report, report.EXAMPLE),
    "explain": (explain.explain, explain.EXAMPLE),
    "explore": (explore.explore, explore.EXAMPLE),
    "export": (export.export, export.EXAMPLE),
    "analyse": (analyse.analyse, analyse.EXAMPLE),
    "merge": (merge.merge, merge.EXAMPLE),
    "convert": (convert.convert, convert.EXAMPLE),
    "bench": (bench.bench, bench.EXAMPLE),
    "push": (push.push, push.EXAMPLE),
}
for _name, (_function, _example) in _COMMANDS.items():
    app.command(_name, cls=command_class(_example))(_function)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"residual-peft {version('residual-peft')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
) -> None:
    pass


def _options_of_all() -> set[str]:
    group: Any = typer.main.get_command(app)
    return {name for command in group.commands.values() for p in command.params for name in p.opts}


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except Interrupted as stopped:
        print(f"\nresidual-peft: {printable(stopped)}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = one_line(error)
        if said is None:
            raise
        said = as_typed(said, _options_of_all())
        print(f"residual-peft: {said}", file=sys.stderr)
        sys.exit(2)
