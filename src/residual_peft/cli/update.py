"""`residual-peft update`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ResiDualError
from .commands import begin, example, tell
from .options import DATA_HELP, READING, with_options


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
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take the images out instead.")] = False,
    remove_class: Annotated[
        str | None,
        typer.Option(
            help="Take this class out instead, with its images in --data; after fit "
            "--keep-statistics-per-class without."
        ),
    ] = None,
    *,
    options: dict[str, Any],
) -> None:
    """Add images to a class head, or take them or a class out, without those it was fitted on.

    Folders of new classes become new classes. Equal to a new fit of the head on all images.
    """
    if data is None and remove_class is None:
        raise ResiDualError(
            "wanted images to add or take out, or a class to remove: give --data or --remove-class."
        )
    if forget and remove_class is not None:
        raise ResiDualError("wanted --forget or --remove-class, got both: give one at a time.")
    begin(f"Updating {adapter}{'' if data is None else f' with {data}'}.")
    from ..app import updating

    if remove_class is None:
        done = updating.update_adapter(adapter, data, forget=forget, **options)
    else:
        done = updating.remove_class(adapter, remove_class, data, **options)
    tell(
        [
            *done.lines(),
            "What the fit said of itself went: report and record, --coverage, --none-of-these.",
            f"The adapter in {adapter} is up to date; measure it with residual-peft eval.",
        ]
    )
