"""`residual-peft look`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import begin, check_file, example, tell
from .options import DATA_HELP, LOOKING, with_options


@example("""residual-peft look photos --out sheet.html
90 images of 3 classes (train 90)
largest class 'one': 30 images (33.3%); smallest 'zero': 30
all 8 x 8 pixels; PNG 90
classes: one 30, two 30, zero 30
copies: none
The contact sheet is sheet.html""")
@with_options(LOOKING)
def look(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    out: Annotated[
        Path | None,
        typer.Option(help="An HTML file to write: a contact sheet that needs no other."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model to find nearly the same images with; none if left out."),
    ] = None,
    alike: Annotated[
        float, typer.Option(help="The cosine from which two are nearly the same.", min=-1, max=1)
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    *,
    options: dict[str, Any],
) -> None:
    """Say what data are like before anything is fitted: classes, sizes, bad files and copies."""
    check_file(out)
    begin(f"Looking at {data}.")
    from ..app.looking import look as look_at

    found = look_at(data, model=model, alike=alike, progress=True, **options)
    tell(found.lines(), found.as_dict() if as_json else None)
    if out is not None:
        found.write_sheet(out)
        print(f"The contact sheet is {out}", file=sys.stderr if as_json else sys.stdout)
