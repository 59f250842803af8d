"""A saved adapter, by name, as a page in the browser."""

import os
from collections.abc import Callable
from pathlib import Path

from ..classifiers.zero_shot import ZeroShotClassifier
from ..errors import ResiDualError
from .explorer import appearance, explorer


def explore(
    adapter: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    browser: bool = True,
    said: Callable[[str], object] = print,
) -> None:
    """Serve the explorer of a saved adapter until it is interrupted; says where the page is.

    Raises:
        ResiDualError: no such adapter, or the port is taken.
    """
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    page = explorer(classifier, title=f"What {Path(adapter).name} sees")
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            **appearance(),
        )
    except OSError as error:
        raise ResiDualError(
            f"wanted to listen at port {port} of {host}, which is taken or not allowed "
            f"({error}): name another one with --port."
        ) from error
    said(f"The explorer is at {address.rstrip('/')} (Ctrl-C ends it)")
    page.block_thread()
