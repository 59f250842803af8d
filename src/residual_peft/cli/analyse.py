"""`residual-peft analyse`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable_lines
from ..hub.places import check_place
from .commands import begin, print_table
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

EXAMPLE = """residual-peft analyse --data photos --out study
...
Accuracy on 9 test images: whole model 0.667, all heads alone 0.778, ...
layer4.head1: an image of the number 3, a photo of the letter: "A", ...
...
study.json, dimension.png, similarity.png, selection.png, ablation.png, ..."""


def analyse(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write study.json and figures to.")],
    model: Model = None,
    template: Template = None,
    words: Words = None,
    at_most: Annotated[int, typer.Option(help="So many images of each split.", min=3)] = 5000,
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
    begin(f"Analysing {model or DEMO_MODEL_SHOWN} on {data}.")
    from ..app.studies import study_model, write_study
    from ..hub.directories import DEMO_MODEL

    study = study_model(
        model or DEMO_MODEL,
        data,
        templates=template,
        words=words,
        images=at_most,
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
    print_table(("kept", "S", "U", "U|T", "at random"), study.cells())
    print(printable_lines("\n".join(study.lines())))
    print(f"{', '.join(names)} are in {out}.")
