"""The program: its commands, and how it ends.

Exit status: 0; 2 for what a user can mend, with one line; 130 after Ctrl-C; 141 where nobody
reads the output any more; 1 for a bug, with its traceback.
"""

import atexit
import gc
import io
import os
import sys
from typing import Annotated, Any

import typer

from ..errors import printable
from .analyse import analyse
from .bench import bench
from .commands import Explained, Interrupted, as_typed, one_line
from .compare import compare
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .explain import explain
from .explore import explore
from .export import export
from .fit import fit
from .look import look
from .merge import merge
from .predict import predict
from .push import push
from .report import report
from .update import update

app = typer.Typer(
    help="Make a CLIP-like model good at your own images: look at them, fit, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the names of options in a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, tuple[Explained, str]] = {
    "demo": (demo, "Adapt the bundled CLIP to real handwriting, offline."),
    "look": (look, "Say what images are like before anything is fitted."),
    "fit": (fit, "Fit an adapter to labelled images."),
    "predict": (predict, "Classify images."),
    "compare": (compare, "Compare what may be fitted, and save nothing."),
    "update": (update, "Add images to a class head, or take them out."),
    "eval": (evaluate, "Measure an adapter on labelled images."),
    "report": (report, "Write what a fit did as one page to show."),
    "explain": (explain, "Say where a class head looks, or what gains did."),
    "explore": (explore, "Look at images and an adapter in the browser."),
    "export": (export, "Write an adapter with its backbone as one ONNX file."),
    "analyse": (analyse, "Say which heads of a model carry some data."),
    "merge": (merge, "Write the base model with an adapter's gains in its weights."),
    "convert": (convert, "Write an adapter for another library's copy of its model."),
    "bench": (bench, "Run models x data sets x methods, and summarise."),
    "push": (push, "Upload an adapter with its card to the Hub."),
}
for _title, (_command, _short) in _COMMANDS.items():
    app.command(_title, cls=_command.cls, short_help=_short)(_command.run)


def _version(requested: bool) -> None:
    if requested:
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


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    # four of nine seconds of a short command went into the search for garbage among what imports
    # made, while they ran and at exit; there is none
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
    # threads of torch that wait for each other, and spin meanwhile, take a core from the one that
    # they wait for, and a fit beside busy programs takes many times as long: benchmarks/busy.json
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # which GNU's OpenMP reads as torch is loaded
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
        group: Any = typer.main.get_command(app)
        options = {o for each in group.commands.values() for p in each.params for o in p.opts}
        said = as_typed(said, options)
        print(f"residual-peft: {said}", file=sys.stderr)
        sys.exit(2)
