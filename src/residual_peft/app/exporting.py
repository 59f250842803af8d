"""A saved adapter, by name, as a file for another runtime."""

import os

from ..classifiers.exporting import ExportedOnnx, export_onnx
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.images import to_rgb
from ..data.inputs import images_of
from ..errors import ResiDualError

AT_MOST = 32
"""Images of the user's that torch and the file are compared on."""


def export_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    images: str | os.PathLike[str] | None = None,
) -> ExportedOnnx:
    """Write a saved adapter as one file that needs neither torch nor this package.

    The first `AT_MOST` images of a file, a folder or a pattern are what torch and the file are
    compared on; None for pictures of noise.

    Raises:
        ResiDualError: no such adapter or format, an image that cannot be read; as `export_onnx`.
    """
    if format != "onnx":
        raise ResiDualError(f"wanted the format onnx, got '{format}'.")
    classifier = ZeroShotClassifier.from_pretrained(adapter)
    chosen = () if images is None else images_of(os.fspath(images))[0][:AT_MOST]
    return export_onnx(classifier, out, images=[to_rgb(item) for item in chosen])
