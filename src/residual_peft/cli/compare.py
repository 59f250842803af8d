"""`residual-peft compare`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import printable_lines
from .commands import begin
from .options import (
    DEMO_MODEL_SHOWN,
    BatchSize,
    Data,
    Device,
    Dtype,
    Few,
    GroupColumn,
    ImageColumn,
    LabelColumn,
    MaxBad,
    Model,
    NumWorkers,
    Strict,
    Template,
    Test,
    Validation,
    share_or_data,
)

EXAMPLE = """residual-peft compare --data photos
method               loss  left-out   test         95 %  numbers  seconds
zero-shot           2.038     0.342  0.300  0.181-0.454        0      0.0
gains               0.273     0.933  0.975  0.871-0.996    1,578      5.8
ridge *             0.028     0.989  1.000  0.912-1.000   15,792      1.1
..."""


def compare(
    data: Data,
    model: Model = None,
    template: Template = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    group_column: GroupColumn = None,
    few: Few = None,
    validation: Validation = "0.1",
    test: Test = "0.1",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Every class counts alike, however few its images.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Compare what may be fitted to labelled images, and save nothing."""
    begin(f"Comparing methods on {data} with {model or DEMO_MODEL_SHOWN}.")
    from ..app.fitting import compare_methods
    from ..hub.directories import DEMO_MODEL

    done = compare_methods(
        model or DEMO_MODEL,
        data,
        templates=template,
        image_column=image_column,
        label_column=label_column,
        group_column=group_column,
        few=few,
        validation=share_or_data(validation),
        test=share_or_data(test),
        balanced=balanced,
        seed=seed,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        dtype=dtype,
    )
    if as_json:
        print(json.dumps([asdict(row) for row in done.methods], indent=2))
    else:
        print(printable_lines("\n".join(done.table())))
