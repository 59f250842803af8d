"""`residual-peft convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..hub.places import check_place
from .commands import begin, example
from .options import Adapter


@example("""residual-peft convert my-gains --model residual_peft/demo-clip --out other-adapter
The adapter for residual_peft/demo-clip is in other-adapter, without its classes.""")
def convert(
    adapter: Adapter,
    model: Annotated[
        str,
        typer.Option(
            help="The other copy: a directory or Hub id of transformers; of open_clip "
            "open_clip:NAME/PRETRAINED, open_clip:local-dir:FOLDER or open_clip:hf-hub:OWNER/NAME."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the adapter to.")],
) -> None:
    """Write an adapter for another library's copy of its base model: transformers or open_clip.

    For adapters of gains in readout mode: fit --method gains.
    """
    check_place(out)
    begin(f"Converting {adapter} for {model}.")
    from ..app.converting import adapter_for

    adapter_for(adapter, model, out)
    print(f"The adapter for {model} is in {out}, without its classes.")
