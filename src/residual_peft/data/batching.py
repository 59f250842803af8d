"""A split -> what the model, the Trainer and the passes over images take."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from datasets import Dataset
from torch import Tensor

from ..errors import ResiDualError
from .columns import check_format
from .decoding import Skipped, Unread
from .images import UnreadableImage, to_rgb
from .labels import label_item, labelling_of_column
from .passes import Batches, prepared
from .processors import least_side
from .skipped import SkippedImage

logger = logging.getLogger(__name__)


class ProcessedImages(torch.utils.data.Dataset):
    """A split as the model and the Trainer take it: item -> `pixel_values` (3, H, W), `labels`.

    Models that take more of an image than its pixels get that, too (`processors.model_inputs`).
    `labels` is a class number, or for a column of lists C zeros and ones, uint8. A dataset with a
    transform is refused: it would be ignored.

    Images are decoded when they are asked for, large ones no larger than the processor needs
    (`images.to_rgb`). One that cannot be read is an UnreadableImage, a ResiDualError with its path
    or row; with `skip` its item says so, and `collate` leaves it out of the batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_processor: Any,
        name: str = "the dataset",
        *,
        skip: bool = False,
    ) -> None:
        check_format(dataset, name)
        self.dataset = dataset.cast_column("image", datasets.Image(decode=False)).with_format(None)
        self.image_processor = image_processor
        self.name = name
        feature = dataset.features.get("label")
        self.labelling = labelling_of_column(feature)
        self.classes = self.labelling.width(feature, name)
        # what class numbers stand for; None where they are bare
        names = None if feature is None else getattr(label_item(feature), "names", None)
        self.class_names = None if names is None else tuple(names)
        self.skip = skip
        self.least = least_side(image_processor)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._read(int(index))
        except UnreadableImage as error:
            if not self.skip:
                raise
            return Skipped(Unread.of(int(index), error), self)

    def _read(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        stored = row["image"]
        path = stored.get("path") if stored else None
        place = f"image {index} of {self.name}"
        title = place + (f" ('{path}')" if path else "")
        if stored is None:
            raise UnreadableImage(
                f"{title} is missing (empty row); remove it.", place, "an empty row"
            )
        try:
            image = to_rgb(stored, title, least=self.least)
        except UnreadableImage as error:
            error.file = path or place
            raise
        item = prepared(self.image_processor, image, title, path or place)
        if "label" not in row:
            return item
        return item | {"labels": self.labels_of([row["label"]])[0]}

    def labels_of(self, column: Sequence[Any]) -> Tensor:
        """Labels (n,) or (n, C) of entries of the column `label`."""
        return torch.from_numpy(self.labelling.array(column, self.classes))

    def near(self, index: int) -> dict[str, Any]:
        """The next image after a row that can be read, the first following the last.

        Raises:
            ResiDualError: there is none.
        """
        for step in range(1, len(self)):
            try:
                return self._read((index + step) % len(self))
            except UnreadableImage:
                continue
        raise ResiDualError(
            f"wanted images, but none of the {len(self)} of {self.name} can be read."
        )


def collate(items: list[Any]) -> dict[str, Tensor]:
    """Items of `ProcessedImages` -> a batch: `pixel_values` (B, 3, H, W) and `labels`.

    Those are (B,) int64, or with several labels per image (B, C) uint8. Images that could not be
    read are left out, with a warning. A batch of nothing else holds the next image that can be
    read: who trains has to have one.
    """
    skipped = [item for item in items if isinstance(item, Skipped)]
    for item in skipped:
        logger.warning("skipped %s", SkippedImage(item.unread.file, item.unread.reason))
    items = [item for item in items if not isinstance(item, Skipped)]
    if not items:
        last: Any = skipped[-1]
        items = [last.images.near(last.unread.row)]
    return {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in items[0]}


def batches(
    dataset: Dataset | ProcessedImages | Batches,
    image_processor: Any = None,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    skip: bool = False,
    rows: Sequence[int] | None = None,
    name: str = "the dataset",
) -> Batches:
    """The split's batches in order, for `fit_bases`, for coordinates and for evaluation.

    Args:
        dataset: a split, or its `ProcessedImages`; `Batches` are given back as they are.
        image_processor: the model's, for a split.
        batch_size: images per batch.
        num_workers: processes that decode images; 0 none, None as many as there are cores that may
            be used, where there is enough to decode and processes can be started.
        skip: leave out images that cannot be read, and list them in `skipped`; otherwise the first
            is an error.
        rows: which images; None all.
        name: what to call the split in messages.

    Raises:
        ResiDualError: bad options, or what is no split.
    """
    if batch_size < 1 or (num_workers is not None and num_workers < 0):
        raise ResiDualError(
            f"wanted batch_size of 1 or more and num_workers of 0 or more, or None, got "
            f"{batch_size} and {num_workers}."
        )
    if isinstance(dataset, Batches):
        return dataset
    if not isinstance(dataset, ProcessedImages):
        dataset = ProcessedImages(dataset, image_processor, name)
    return Batches(dataset, batch_size, num_workers, skip, None if rows is None else [rows])
