"""A Hub id, a folder of class folders or a `datasets.Dataset` -> labelled splits of images.

Whatever comes in, what goes out has a column `image` (datasets.Image), a column `label`
(ClassLabel, or lists of it) and class names; missing splits are cut from the training split,
stratified and seeded.
"""

from ..reading import with_progress
from .batches import Batches, ProcessedImages, batches, collate
from .checking import SkippedImage, write_skipped
from .loading import ImageData, load_data
from .stratification import iterative_folds, iterative_split, stratified_split

__all__ = [
    "Batches",
    "ImageData",
    "ProcessedImages",
    "SkippedImage",
    "batches",
    "collate",
    "iterative_folds",
    "iterative_split",
    "load_data",
    "stratified_split",
    "with_progress",
    "write_skipped",
]
