"""`residual-peft merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ..hub.places import check_place
from .commands import begin, example
from .options import Adapter


@example("""residual-peft merge my-stream-adapter --out my-clip
The model is in my-clip, with the adapter in its weights.""")
def merge(
    adapter: Adapter,
    out: Annotated[Path, typer.Option(help="The folder to write the model to.")],
) -> None:
    """Write the base model with an adapter's gains in its weights: a plain model of transformers.

    For adapters in stream mode: fit --trainer --set mode=stream.
    """
    check_place(out)
    begin(f"Merging {adapter}.")
    from ..app.converting import merge_adapter

    merge_adapter(adapter, out)
    print(f"The model is in {out}, with the adapter in its weights.")
