"""An explorer in the browser: one image and what moved it, a folder of images and their classes.

Names are imported when they are first used: the page needs the extra `explorer`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import appearance, explorer

__all__ = ["appearance", "explorer"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import page

    return getattr(page, name)
