"""Arguments in, library calls, messages out; computes nothing itself."""

import json
import sys
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from .anatomy import Unit
from .demo.run import run_demo
from .errors import ResiDualError
from .experiments import METHODS, Row
from .files import write_json
from .fitting import evaluate_adapter, fit_adapter
from .hub import DEMO_MODEL, REPORT, RUN_DIRECTORY, push_directory
from .reporting import HEADERS, table_cells, write_report
from .run_record import RunRecord
from .studies import study_adapter, study_model, write_study
from .tuner import ResiDualConfig, check_directory

app = typer.Typer(
    help="Adapt CLIP with one gain per spectral component of each attention head.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Data = Annotated[str, typer.Option(help="A folder of class folders, or a dataset id on the Hub.")]
ImageColumn = Annotated[str | None, typer.Option(help="Found by itself when left out.")]
Words = Annotated[
    Path | None, typer.Option(help="Texts to explain with, one a line; a bundled list if left out.")
]
LabelColumn = Annotated[str | None, typer.Option(help="Found by itself when left out.")]


def _print_table(rows: list[Row]) -> None:
    table = Table()
    for index, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if index else "left")
    labels = {name: method.label for name, method in METHODS.items()}
    for cells in table_cells(rows, labels):
        table.add_row(*cells)
    Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("demo-output"),
) -> None:
    """Real handwriting, classified by the bundled CLIP before and after adapting it; offline."""
    results = run_demo(out)
    _print_table([Row(**row) for row in results["rows"]])
    print(f"The adapter, results.json, gains.png and a card are in {out}.")
    if (out / REPORT).is_file():
        print(f"The report is {out / REPORT}")


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the adapter to.")],
    model: Annotated[
        str, typer.Option(help="A CLIP, SigLIP, DINOv2, ...: a directory or a Hub id.")
    ] = DEMO_MODEL,
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt with {} for the class name; repeatable.")
    ] = None,
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
) -> None:
    """Fit an adapter to labelled images: one pass over them, then seconds."""
    done = fit_adapter(
        model,
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
    )
    name = "accuracy" if "accuracy" in done.adapted else "mean_average_precision"
    before, after = done.zero_shot[name], done.adapted[name]
    measured = "" if name == "accuracy" else "mean average precision, "
    print(f"{done.start} {before:.3f} -> adapted {after:.3f} ({measured}test images)")
    encoding, fitting = done.encoding_seconds, done.fitting_seconds
    print(f"{encoding:.1f} s to read the images, {fitting:.1f} s to fit the gains")
    print(f"The adapter is in {out}.")
    if report and not (out / RUN_DIRECTORY).is_dir():
        print("There is no report: it counts right and wrong images, with one label each.")
    elif report:
        write_report(RunRecord.load(out), out / REPORT)
        print(f"The report is {out / REPORT}")


@app.command("report")
def write_page(
    run_dir: Annotated[Path, typer.Argument(help="The adapter's directory, as fit left it.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; report.html in RUN_DIR if left out.")
    ] = None,
) -> None:
    """Write what a fit did as one page to show: an HTML file that needs no other."""
    record = RunRecord.load(run_dir)
    path = out or run_dir / REPORT
    if path.is_dir():
        raise ResiDualError(f"wanted a file to write the report to, got the directory '{path}'.")
    write_report(record, path)
    print(f"The report is {path}")


def _named(unit: Unit, component: int | None) -> str:
    return f"{unit}" if component is None else f"{unit} {component}"


@app.command()
def explain(
    adapter: Annotated[str, typer.Option(help="The adapter's directory or Hub id.")],
    data: Data,
    image: Annotated[
        list[Path] | None, typer.Option(help="A photo to explain by itself, too; repeatable.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write all of it to.")] = None,
    components: Annotated[int, typer.Option(help="How many to show.", min=1)] = 12,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Annotated[int, typer.Option(help="Of the splits, as for fit.")] = 0,
) -> None:
    """Say which components an adapter amplified or silenced, what that did, and in which words."""
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
    )
    found = study.explanation
    table = Table("component", "gain", "share", "toward label", "words")
    for effect, said in zip_longest(study.strongest, study.words):
        table.add_row(
            _named(effect.unit, effect.component),
            f"{effect.gain:.2f}",
            f"{effect.share:.1%}",
            f"{effect.toward_label:+.3f}",
            ", ".join(said.signed()) if said else "",
        )
    Console().print(table)
    print(
        f"Shares of the squared change of the logits of {found.images} images; all components "
        f"{float(found.share.sum()):.1%}, rescaling {found.rescaling_share:.1%}, settings "
        f"{found.settings_share:.1%}."
    )
    for path, moved in study.images.items():
        print(
            f"{path}: {moved.from_class} -> {moved.to_class}, margin {moved.margin_before:+.2f} -> "
            f"{moved.margin_after:+.2f}"
        )
        for unit, number, gain, effect in moved.strongest(5):
            print(f"  {_named(unit, number)}: gain {gain:.2f}, {effect:+.2f}")
    if out is not None:
        write_json(out, study.as_dict())
        print(f"All of it is in {out}.")


@app.command()
def analyse(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write study.json and figures to.")],
    model: Annotated[
        str, typer.Option(help="A CLIP, SigLIP, DINOv2, ...: a directory or a Hub id.")
    ] = DEMO_MODEL,
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt with {} for the class name; repeatable.")
    ] = None,
    words: Words = None,
    images: Annotated[int, typer.Option(help="At most so many of each split.", min=3)] = 5000,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Annotated[int, typer.Option(help="Of the splits and draws.")] = 0,
) -> None:
    """Say which heads of a model carry some data, how many dimensions they use, in which words."""
    study = study_model(
        model,
        data,
        templates=template,
        words=words,
        images=images,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
        progress=True,
    )
    names = write_study(study, out)
    table = Table("kept", "S", "U", "U|T", "at random")
    columns = [study.selection.curve(letter).points for letter in ("S", "U", "U|T", "R")]
    rows = {points[0].units: points for points in zip(*columns, strict=True)}
    for units, points in rows.items():  # of few heads, several budgets are the same number
        name = "1 head" if units == 1 else f"{units} heads"
        table.add_row(name, *(f"{point.accuracy:.3f}" for point in points))
    Console().print(table)
    lines = {line.letter: line.accuracy for line in study.selection.lines}
    print(
        f"Accuracy on {study.images['test']} test images: whole model {lines['B']:.3f}, all heads "
        f"alone {lines['H']:.3f}, one gain per head {lines['O']:.3f}."
    )
    words_of = {item.unit: item.texts for item in study.words}
    best = study.selection.curve("S")
    ranking = next(r for r in study.selection.rankings if r.method == best.method)
    for unit in ranking.top(5):
        print(f"{unit}: {', '.join(words_of.get(unit, ())[:3])}")
    print(f"{', '.join(names)} are in {out}.")


@app.command()
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
    check_directory(adapter)
    done = push_directory(
        adapter, repo, private=private or None, revision=revision, with_report=with_report
    )
    print(f"The adapter is at {done.commit_url}")


@app.command("eval")
def evaluate(
    adapter: Annotated[str, typer.Option(help="The adapter's directory or Hub id.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Annotated[int, typer.Option(help="Of the splits, as for fit.")] = 0,
) -> None:
    """Measure an adapter on labelled images; prints JSON."""
    scores = evaluate_adapter(
        adapter,
        data,
        split=split,
        image_column=image_column,
        label_column=label_column,
        seed=seed,
    )
    print(json.dumps(scores, indent=2))


def _quiet() -> None:
    """Leave the terminal to this program's own bars and messages."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    # transformers' and PEFT's notices to each other about names that will change
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    # PEFT asks the Hub for the bundled model's vocabulary, which no method here changes
    warnings.filterwarnings("ignore", message="Could not find a config file")


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    _quiet()
    try:
        app()
    except ResiDualError as error:
        print(f"residual-peft: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
