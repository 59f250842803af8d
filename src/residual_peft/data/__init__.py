"""A Hub id, a folder of class folders or a `datasets.Dataset` -> labelled splits of images.

Whatever comes in, what goes out has a column `image` (datasets.Image), a column `label`
(ClassLabel, or lists of it) and class names; missing splits are cut from the training split,
stratified and seeded.

Names are imported when they are first used: what loads an adapter takes class names and progress
from here, and needs no `datasets`.
"""

from typing import TYPE_CHECKING

from ..hub.lazy import imported_when_used

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
    "load_data",
    "metrics",
    "passes",
    "pictures",
    "processors",
    "progress",
    "provenance",
    "skipped",
    "stored",
    "stratified_split",
    "survey",
    "write_skipped",
]

__getattr__ = imported_when_used(
    __name__,
    batching=("ProcessedImages", "batches", "collate"),
    image_data=("ImageData",),
    loading=("load_data",),
    passes=("Batches", "ImageFiles"),
    skipped=("SkippedImage", "write_skipped"),
    stratification=("iterative_folds", "iterative_split", "stratified_split"),
)
