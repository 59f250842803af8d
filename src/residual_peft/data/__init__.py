"""A Hub id, a folder of class folders or a `datasets.Dataset` -> labelled splits of images.

Whatever comes in, what goes out has a column `image` (datasets.Image), a column `label`
(ClassLabel, or lists of it) and class names; missing splits are cut from the training split,
stratified and seeded.

Names are imported when they are first used: what loads an adapter takes class names and progress
from here, and needs no `datasets`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching import ProcessedImages, batches, collate
    from .image_data import ImageData
    from .loading import load_data
    from .passes import Batches, ImageFiles
    from .skipped import SkippedImage, write_skipped
    from .stratification import iterative_folds, iterative_split, stratified_split

__all__ = [
    "Batches",
    "ImageData",
    "ImageFiles",
    "ProcessedImages",
    "SkippedImage",
    "batches",
    "checking",
    "class_list",
    "class_names",
    "collate",
    "defaults",
    "groups",
    "images",
    "inputs",
    "iterative_folds",
    "iterative_split",
    "labels",
    "listing",
    "load_data",
    "metrics",
    "passes",
    "pictures",
    "preparation",
    "processors",
    "progress",
    "provenance",
    "stratified_split",
    "survey",
    "write_skipped",
]

_HOME = {
    **dict.fromkeys(("ProcessedImages", "batches", "collate"), "batching"),
    **dict.fromkeys(("SkippedImage", "write_skipped"), "skipped"),
    "ImageData": "image_data",
    "load_data": "loading",
    **dict.fromkeys(("Batches", "ImageFiles"), "passes"),
    **dict.fromkeys(("iterative_folds", "iterative_split", "stratified_split"), "stratification"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return found
