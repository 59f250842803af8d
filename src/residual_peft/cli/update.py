"""`residual-peft update`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import begin, example, tell
from .options import READING, Data, with_options


@example("""residual-peft update my-adapter --data more-photos
19 images added: 6 one, 7 three, 6 zero
new class: three
2 images left out, known already
What the fit said of itself went: report and record, --coverage, --none-of-these.
The adapter in my-adapter is up to date; measure it with residual-peft eval.""")
@with_options(READING)
def update(
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER", help="The directory of an adapter fitted with --keep-statistics."
        ),
    ],
    data: Data,
    forget: Annotated[bool, typer.Option("--forget", help="Take the images out instead.")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Add images to a class head, or take them out, without the images it was fitted on.

    Folders of new classes become new classes. Equal to a new fit of the head on all images.
    """
    begin(f"Updating {adapter} with {data}.")
    from ..app.updating import update_adapter

    done = update_adapter(adapter, data, forget=forget, **options)
    tell(
        [
            *done.lines(),
            "What the fit said of itself went: report and record, --coverage, --none-of-these.",
            f"The adapter in {adapter} is up to date; measure it with residual-peft eval.",
        ]
    )
