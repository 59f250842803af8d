"""A classifier as one file of another runtime: pixels in, probabilities out.

Names are imported when they are first used: they need the extra `onnx`.
"""

from typing import TYPE_CHECKING

from ...hub.lazy import imported_when_used

if TYPE_CHECKING:
    from .onnx import ExportedOnnx, export_onnx

__all__ = ["ExportedOnnx", "export_onnx"]

__getattr__ = imported_when_used(__name__, onnx=(*__all__,))
