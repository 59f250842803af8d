"""A classifier as one file of another runtime: pixels in, probabilities out.

Names are imported when they are first used: they need the extra `onnx`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .onnx import ExportedOnnx, export_onnx

__all__ = ["ExportedOnnx", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import onnx

    return getattr(onnx, name)
