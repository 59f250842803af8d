"""`residual-peft explain`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable_lines
from .commands import begin, check_file, given, print_table
from .options import (
    DATA_HELP,
    Adapter,
    AdapterOption,
    BatchSize,
    Device,
    ImageColumn,
    LabelColumn,
    MaxBad,
    NumWorkers,
    Split,
    SplitSeed,
    Strict,
    Words,
)

EXAMPLE = """residual-peft explain my-adapter photo.png
photo.png: zero rather than one, margin +4.54
  layer4.head1 0: +0.48  (- an image of the number 3, + a photo of the letter: "B")
  layer3.head3 0: +0.41  (+ the digit 2, - an image of the number 8)
...
  1,568 others: +1.37; whatever the image: -0.80; together +4.54"""


def explain(
    adapter: Adapter = None,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES", help="Images to explain one by one."),
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    adapter_option: AdapterOption = None,
    split: Split = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="The same as IMAGES; repeatable.", hidden=True)
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
    device: Device = None,
) -> None:
    """Say where a class head looks, or what gains did, component by component and in words.

    On labelled images with --data, for single IMAGES, or without either as the fit recorded it.
    """
    if out is not None:
        check_file(out)
    how = "residual-peft explain ADAPTER [IMAGES] [--data DATA]"
    chosen = given(adapter, adapter_option, "an adapter", how)
    pictures = [*(images or []), *(image or [])]
    on = [data] if data is not None else []
    begin(f"Explaining {chosen}{' on ' if on or pictures else ''}{_listed(on, pictures)}.")
    from ..app.explaining import study_adapter
    from ..hub.files import write_json

    study = study_adapter(
        chosen,
        data,
        split=split,
        images=pictures,
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
        device=device,
    )
    if cells := study.cells():
        print_table(study.headers, cells)
    print(printable_lines("\n".join(study.lines())))
    if out is not None:
        write_json(out, study.as_dict())
        print(f"All of it is in {out}.")


def _listed(data: list[str], images: list[Path]) -> str:
    names = [*data, *map(str, images[:3])]
    return ", ".join(names) + (", ..." if len(images) > 3 else "")
