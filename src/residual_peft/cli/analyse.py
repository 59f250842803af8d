"""`residual-peft analyse`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..hub.places import check_place
from .commands import begin, example, print_table, tell
from .options import DEMO_MODEL_SHOWN, READING, Data, Model, Template, Words, with_options


@example("""residual-peft analyse --data photos --out study
...
Accuracy on 9 test images: whole model 0.667, all heads alone 0.778, ...
layer4.head1: an image of the number 3, a photo of the letter: "A", ...
...
study.json, dimension.png, similarity.png, selection.png, ablation.png, ...""")
@with_options(READING)
def analyse(
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write study.json and figures to.")],
    model: Model = None,
    template: Template = None,
    words: Words = None,
    at_most: Annotated[int, typer.Option(help="So many images of each split.", min=3)] = 5000,
    seed: Annotated[int, typer.Option(help="Of the splits and draws.")] = 0,
    *,
    options: dict[str, Any],
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
        seed=seed,
        progress=True,
        **options,
    )
    names = write_study(study, out)
    print_table(("kept", "S", "U", "U|T", "at random"), study.cells())
    tell(study.lines())
    print(f"{', '.join(names)} are in {out}.")
