"""`residual-peft explain`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import begin, check_file, example, print_table, tell
from .options import DATA_HELP, MEASURING, Adapter, Words, with_options


@example("""residual-peft explain my-adapter photo.png
photo.png: zero rather than one, margin +4.54
  layer4.head1 0: +0.48  (- an image of the number 3, + a photo of the letter: "B")
  layer3.head3 0: +0.41  (+ the digit 2, - an image of the number 8)
...
  1,568 others: +1.37; whatever the image: -0.80; together +4.54""")
@with_options(MEASURING)
def explain(
    adapter: Adapter,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGES", help="Images to explain one by one.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    words: Words = None,
    components: Annotated[int, typer.Option(help="How many to list.", min=1)] = 12,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write all of it to.")] = None,
    *,
    options: dict[str, Any],
) -> None:
    """Say where a class head looks, or what gains did, component by component and in words.

    On labelled images with --data, for single IMAGES, or without either as the fit recorded it.
    """
    check_file(out)
    pictures = images or []
    on = [*([] if data is None else [data]), *map(str, pictures[:3])]
    on += ["..."] if pictures[3:] else []
    begin(f"Explaining {adapter}{' on ' if on else ''}{', '.join(on)}.")
    from ..app.explaining import study_adapter
    from ..hub.files import write_json

    study = study_adapter(
        adapter, data, images=pictures, words=words, count=components, progress=True, **options
    )
    if cells := study.cells():
        print_table(study.headers, cells)
    tell(study.lines())
    if out is not None:
        write_json(out, study.as_dict())
        print(f"All of it is in {out}.")
