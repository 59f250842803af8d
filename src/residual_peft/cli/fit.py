"""`residual-peft fit`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable_lines
from ..hub.places import check_place
from .commands import begin
from .options import (
    DEMO_MODEL_SHOWN,
    BatchSize,
    Data,
    ImageColumn,
    LabelColumn,
    MaxBad,
    Model,
    NumWorkers,
    Strict,
    Template,
    Words,
)

EXAMPLE = """residual-peft fit --data photos --out my-adapter
zero-shot 0.667 -> adapted 0.889 (test images)
90 images of 3 classes: 72 train, 9 validation, 9 test
...
The adapter is in my-adapter.
The report is my-adapter/report.html"""


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
    method: Annotated[
        str,
        typer.Option(help="What to fit: ridge, gains, ... (compare lists them); auto tries all."),
    ] = "auto",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Every class counts alike, however few its images.")
    ] = False,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Train gains with the HF Trainer instead: slower.")
    ] = False,
    keep_statistics: Annotated[
        bool,
        typer.Option(
            "--keep-statistics",
            help="Keep sums in run/ that update changes a ridge head by; they are data.",
        ),
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
    begin(f"Fitting an adapter to {data} with {model or DEMO_MODEL_SHOWN}.")
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
        method=method,
        balanced=balanced,
        trainer=trainer,
        keep_statistics=keep_statistics,
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
