"""`residual-peft update`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable_lines
from .commands import begin, given
from .options import (
    AdapterOption,
    BatchSize,
    Data,
    ImageColumn,
    LabelColumn,
    MaxBad,
    NumWorkers,
    Strict,
)

EXAMPLE = """residual-peft update my-adapter --data more-photos
19 images added: 6 one, 7 three, 6 zero
new class: three
2 images left out, known already
The adapter in my-adapter is up to date; measure it with residual-peft eval."""
_HOW = "residual-peft update ADAPTER --data FOLDER"


def update(
    data: Data,
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="ADAPTER",
            help="The directory of an adapter fitted with --keep-statistics.",
            show_default=False,
        ),
    ] = None,
    adapter_option: AdapterOption = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take the images out instead.")] = False,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    max_bad: MaxBad = 0.05,
    strict: Strict = False,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = None,
) -> None:
    """Add images to a class head, or take them out, without the images it was fitted on.

    Folders of new classes become new classes. Equal to a new fit of the head on all images.
    """
    directory = given(adapter, adapter_option, "an adapter's directory", _HOW)
    begin(f"Updating {directory} with {data}.")
    from ..app.updating import update_adapter

    done = update_adapter(
        Path(directory),
        data,
        forget=forget,
        image_column=image_column,
        label_column=label_column,
        max_bad=max_bad,
        strict=strict,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    print(printable_lines("\n".join(done.lines())))
    print(
        printable_lines(
            f"The adapter in {directory} is up to date; measure it with residual-peft eval."
        )
    )
