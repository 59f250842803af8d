"""Arguments in, library calls, messages out; computes nothing itself.

Imports nothing heavy: what a command needs is imported in it, so that `--help` and a mistyped
folder are answered at once. Exit status: 0; 2 for what a user can mend, with one line; 130 after
Ctrl-C; 1 for a bug, with its traceback.
"""

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..app.messages import one_line, quiet
from ..errors import ResiDualError, printable, printable_lines
from ..hub.places import check_place

DEMO_MODEL_SHOWN = "the bundled small CLIP"


class _Interrupted(Exception):
    """Ctrl-C, past what typer makes of it; its text is for the user."""


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        """Run it; Ctrl-C ends it with one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted(str(error) or "interrupted.") from error


app = typer.Typer(
    help="Adapt CLIP with one gain per spectral component of each attention head.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, typer.Option(help="A folder of class folders, or a dataset id on the Hub.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A CLIP, SigLIP, DINOv2, ...: a directory or a Hub id.", show_default=DEMO_MODEL_SHOWN
    ),
]
Template = Annotated[
    list[str] | None, typer.Option(help="A prompt with {} for the class name; repeatable.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Found by itself when left out.")]
Words = Annotated[
    Path | None, typer.Option(help="Texts to explain with, one a line; a bundled list if left out.")
]
LabelColumn = Annotated[str | None, typer.Option(help="Found by itself when left out.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="train, validation, test or all; if left out, test of the data that the adapter was "
        "fitted on, and all of other data."
    ),
]
SplitSeed = Annotated[
    int | None, typer.Option(help="Of the splits; the adapter's own if left out.")
]
MaxBad = Annotated[
    float,
    typer.Option(help="The share of unreadable images at which to stop.", min=0, max=1),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first unreadable image.")]
BatchSize = Annotated[int, typer.Option(help="Images per forward pass.", min=1)]
NumWorkers = Annotated[
    int | None,
    typer.Option(help="Processes that decode images; if left out, as suits the machine.", min=0),
]


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


@app.command(cls=_Command)
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo-output"),
) -> None:
    """Real handwriting, classified by the bundled CLIP before and after adapting it; offline."""
    check_place(out)
    _begin("Loading the bundled model.")
    from ..app.demonstration import run_demo
    from ..experiments import METHODS, Row
    from ..hub.directories import REPORT
    from ..reporting import HEADERS, table_cells

    results = run_demo(out)
    labels = {name: method.label for name, method in METHODS.items()}
    cells = table_cells([Row(**row) for row in results["rows"]], labels)
    _print_table(HEADERS, cells)
    print(f"The adapter, results.json, gains.png and a card are in {out}.")
    if (out / REPORT).is_file():
        print(f"The report is {out / REPORT}")


@app.command(cls=_Command)
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the adapter to.")],
    model: Model = None,
    template: Template = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    readout: Annotated[
        str | None,
        typer.Option(
            help="mean or patches: the mean of the tower's tokens; classes are means, too."
        ),
    ] = None,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Train with the HF Trainer instead: slower.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the splits and the order of the images.")] = 0,
    license: Annotated[
        str | None, typer.Option(help="Of the adapter, such as apache-2.0, for its card.")
    ] = None,
    words: Words = None,
    report: Annotated[
        bool, typer.Option(help="Write report.html beside the adapter; it shows test images.")
    ] = True,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
) -> None:
    """Fit an adapter to labelled images: one pass over them, then seconds.

    An interrupted fit goes on where it stopped when the same command is given again.
    """
    check_place(out)
    _begin(f"Fitting an adapter to {data} with {model or DEMO_MODEL_SHOWN}.")
    from ..app.fitting import fit_adapter
    from ..hub.directories import DEMO_MODEL, REPORT, RUN_DIRECTORY
    from ..reporting import write_report
    from ..reporting.run_record import RunRecord
    from ..tuner import ResiDualConfig

    done = fit_adapter(
        model or DEMO_MODEL,
        data,
        out,
        templates=template,
        config=None if readout is None else ResiDualConfig(seed=seed, readout=readout),
        trainer=trainer,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        license=license,
        words=words,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    print(printable_lines("\n".join(done.lines())))
    print(f"The adapter is in {out}.")
    if report and not (out / RUN_DIRECTORY / "run.json").is_file():
        print("There is no report: it counts right and wrong images, with one label each.")
    elif report:
        write_report(RunRecord.load(out), out / REPORT)
        print(f"The report is {out / REPORT}")


@app.command("report", cls=_Command)
def write_page(
    run_dir: Annotated[Path, typer.Argument(help="The adapter's directory, as fit left it.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; report.html in RUN_DIR if left out.")
    ] = None,
) -> None:
    """Write what a fit did as one page to show: an HTML file that needs no other."""
    quiet()
    from ..hub.directories import REPORT
    from ..reporting import write_report
    from ..reporting.run_record import RunRecord

    record = RunRecord.load(run_dir)
    path = out or run_dir / REPORT
    if path.is_dir():
        raise ResiDualError(f"wanted a file to write the report to, got the directory '{path}'.")
    write_report(record, path)
    print(f"The report is {path}")


@app.command(cls=_Command)
def explain(
    adapter: Annotated[str, typer.Option(help="The adapter's directory or Hub id.")],
    data: Data,
    split: Split = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="An image to explain by itself, too; repeatable.")
    ] = None,
    words: Words = None,
    components: Annotated[int, typer.Option(help="How many to list.", min=1)] = 12,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write all of it to.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: SplitSeed = None,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
) -> None:
    """Say which components an adapter turned up, down or around, and what that did, in words."""
    if out is not None:
        _check_file(out)
    _begin(f"Explaining {adapter} on {data}.")
    from ..app.studies import study_adapter
    from ..hub.files import write_json

    study = study_adapter(
        adapter,
        data,
        split=split,
        images=image or [],
        words=words,
        count=components,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        progress=True,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    _print_table(("component", "gain", "share", "toward label", "words"), study.cells())
    print(printable_lines("\n".join(study.lines())))
    if out is not None:
        write_json(out, study.as_dict())
        print(f"All of it is in {out}.")


@app.command(cls=_Command)
def analyse(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write study.json and figures to.")],
    model: Model = None,
    template: Template = None,
    words: Words = None,
    images: Annotated[int, typer.Option(help="At most so many of each split.", min=3)] = 5000,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Annotated[int, typer.Option(help="Of the splits and draws.")] = 0,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
) -> None:
    """Say which heads of a model carry some data, how many dimensions they use, in which words."""
    check_place(out)
    _begin(f"Analysing {model or DEMO_MODEL_SHOWN} on {data}.")
    from ..app.studies import study_model, write_study
    from ..hub.directories import DEMO_MODEL

    study = study_model(
        model or DEMO_MODEL,
        data,
        templates=template,
        words=words,
        images=images,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        progress=True,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    names = write_study(study, out)
    _print_table(("kept", "S", "U", "U|T", "at random"), study.cells())
    print(printable_lines("\n".join(study.lines())))
    print(f"{', '.join(names)} are in {out}.")


@app.command(cls=_Command)
def push(
    adapter: Annotated[Path, typer.Option(help="The directory of a saved adapter.")],
    repo: Annotated[str, typer.Option(help="Where to on the Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option(help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made when missing.")] = None,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="Upload report.html, too: it shows test images.")
    ] = False,
) -> None:
    """Upload an adapter with its card to the Hub, in one commit; `hf auth login` comes first."""
    quiet()
    from ..hub.directories import push_directory
    from ..tuner import check_directory

    check_directory(adapter)
    done = push_directory(
        adapter, repo, private=private or None, revision=revision, with_report=with_report
    )
    print(printable(f"The adapter is at {done.commit_url}"))


@app.command("eval", cls=_Command)
def evaluate(
    adapter: Annotated[str, typer.Option(help="The adapter's directory or Hub id.")],
    data: Data,
    split: Split = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: SplitSeed = None,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
) -> None:
    """Measure an adapter on labelled images; prints JSON."""
    _begin(f"Measuring {adapter} on {data}.")
    from ..app.fitting import evaluate_adapter

    scores = evaluate_adapter(
        adapter,
        data,
        split=split,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    print(json.dumps(scores, indent=2, ensure_ascii=False))


def _print_table(headers: Any, rows: Any) -> None:
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


def _check_file(path: Path) -> None:
    """Before any work: a file that can be written."""
    if path.is_dir():
        raise ResiDualError(f"wanted a file to write to, got the directory '{path}'.")
    check_place(path.parent)


def _begin(text: str) -> None:
    """A first line at once, then the imports that take seconds."""
    print(printable(text), file=sys.stderr, flush=True)
    quiet()


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except _Interrupted as stopped:
        print(f"\nresidual-peft: {printable(stopped)}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = one_line(error)
        if said is None:
            raise
        print(f"residual-peft: {said}", file=sys.stderr)
        sys.exit(2)
