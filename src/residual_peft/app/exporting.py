"""A saved adapter, by name, as a file for another runtime."""

import os
from dataclasses import dataclass
from typing import Any

from ..classifiers.exporting import ExportedOnnx, export_onnx
from ..classifiers.zero_shot import ZeroShotClassifier
from ..data.images import to_rgb
from ..data.inputs import images_of
from ..data.labels import labelling_of
from ..errors import ResiDualError, counted

AT_MOST = 32
"""Images of the user's that torch and the file are compared on."""


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    found: ExportedOnnx  # what the exporter says of it
    classes: int  # how many the file answers for
    multi_label: bool  # whether an image may have several labels

    def lines(self) -> list[str]:
        """For people."""
        found = self.found
        height, width = found.size
        said = [
            f"{found.path}: {found.bytes / 1e6:.1f} MB; pixels (N, 3, {height}, {width}) in, "
            f"{labelling_of(self.multi_label).answer_words} {self.classes:,} classes out",
            f"onnxruntime and torch differ by {found.probability_difference:.1e} in a probability "
            f"at most, on {counted(found.images, 'image')}",
        ]
        if found.dtype != "float32":
            said.append(f"the adapter's model is in {found.dtype}; the file computes in float32")
        return said

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = self.found
        return {
            "file": str(found.path),
            "bytes": found.bytes,
            "size": list(found.size),
            "classes": self.classes,
            "several_labels": self.multi_label,
            "images": found.images,
            "probability_difference": found.probability_difference,
            "logit_difference": found.logit_difference,
            "dtype": found.dtype,
            "seconds": found.seconds,
        }


def export_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    images: str | os.PathLike[str] | None = None,
) -> ExportReport:
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
    pictures = [to_rgb(item) for item in chosen]
    found = export_onnx(classifier, out, images=pictures)
    return ExportReport(found, len(classifier.class_names), classifier.multi_label)
