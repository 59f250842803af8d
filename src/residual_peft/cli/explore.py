"""`residual-peft explore`."""

from typing import Annotated

import typer

from .commands import begin, example
from .options import Adapter


@example("""residual-peft explore my-adapter
The explorer is at http://127.0.0.1:7860 (Ctrl-C ends it)""")
def explore(
    adapter: Adapter,
    port: Annotated[int, typer.Option(help="Where it listens.", min=1, max=65535)] = 7860,
    host: Annotated[
        str, typer.Option(help="This machine alone; 0.0.0.0 lets others in the network in.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open it in the browser.")] = True,
) -> None:
    """Look at images in the browser: classes before and after, which heads and words did it.

    Sliders turn the strongest components and show at once what comes of it; a second tab takes a
    folder of images. Needs the extra 'explorer'; nothing is sent anywhere.
    """
    begin(f"Loading {adapter}.")
    from ..app.explorer import explore as explore_with

    explore_with(adapter, host=host, port=port, browser=browser, said=print)
