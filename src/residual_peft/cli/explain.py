"""`residual-peft explain`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable_lines
from .commands import begin, check_file, given, print_table
from .options import (
    Adapter,
    AdapterOption,
    BatchSize,
    Data,
    ImageColumn,
    LabelColumn,
    MaxBad,
    NumWorkers,
    Split,
    SplitSeed,
    Strict,
    Words,
)

EXAMPLE = """residual-peft explain my-adapter --data photos --image photo.png
...
photo.png: one -> two, margin of two -2.47 -> +10.82
  layer3.head5 16: gain 1239.62, margin +1.86
  layer1.head2 1: gain -1.04, margin +1.37
..."""


def explain(
    data: Data,
    adapter: Adapter = None,
    adapter_option: AdapterOption = None,
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
        check_file(out)
    how = "residual-peft explain ADAPTER --data DATA"
    chosen = given(adapter, adapter_option, "an adapter", how)
    begin(f"Explaining {chosen} on {data}.")
    from ..app.studies import study_adapter
    from ..hub.files import write_json

    study = study_adapter(
        chosen,
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
    print_table(("component", "gain", "share", "toward label", "words"), study.cells())
    print(printable_lines("\n".join(study.lines())))
    if out is not None:
        write_json(out, study.as_dict())
        print(f"All of it is in {out}.")
