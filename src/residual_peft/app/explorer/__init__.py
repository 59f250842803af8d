"""An explorer in the browser: one image and what moved it, a folder of images and their classes.

Names are imported when they are first used: the page needs the extra `explorer`.
"""

from typing import TYPE_CHECKING

from ...hub.lazy import imported_when_used

if TYPE_CHECKING:
    from .page import appearance, explore, explorer

__all__ = ["appearance", "explore", "explorer"]

__getattr__ = imported_when_used(__name__, page=(*__all__,))
