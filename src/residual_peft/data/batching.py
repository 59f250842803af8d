"""A split -> what the model, the Trainer and the passes over images take."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from datasets import Dataset
from torch import Tensor

from ..errors import ResiDualError
from .columns import check_format
from .decoding import Piece, Skipped, Unread, decoded
from .images import UnreadableImage, least_side, model_inputs, to_rgb
from .labels import labelling_of_column
from .skipped import SkippedImage

logger = logging.getLogger(__name__)


class ProcessedImages(torch.utils.data.Dataset):
    """A split as the model and the Trainer take it: item -> `pixel_values` (3, H, W), `labels`.

    Models that take more of an image than its pixels get that, too (`images.model_inputs`).

    `labels` is a class number, or for a column of lists C zeros and ones, uint8.

    A dataset with a transform is refused: it would be ignored.

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
        try:
            prepared = model_inputs(self.image_processor, [image])
        except Exception as error:  # processors raise many kinds
            raise UnreadableImage(
                f"the image processor could not prepare {title}, {image.width} x {image.height} "
                f"pixels ({error}).",
                path or place,
                f"the image processor refused it ({error})",
            ) from error
        item: dict[str, Any] = {name: tensor[0] for name, tensor in prepared.items()}
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
    names = [name for name in items[0] if name != "labels"]
    batch = {name: torch.stack([item[name] for item in items]) for name in names}
    if "labels" in items[0]:
        labels = [torch.as_tensor(item["labels"]) for item in items]
        batch["labels"] = torch.stack(labels)
    return batch


class Batches:
    """Batches of a split in order, decoded in other processes where that pays (`decoding`).

    Each holds what `collate` gives, and `index` (B,), the images' rows.

    Attributes:
        dataset: the images.
        skipped: row, file and reason of each image that could not be read, filled by iterating; the
            batches are smaller by those.
    """

    def __init__(
        self,
        dataset: ProcessedImages,
        batch_size: int = 64,
        num_workers: int | None = None,
        skip: bool = False,
        groups: Sequence[Sequence[int]] | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.num_workers, self.skip = num_workers, skip
        # rows; no batch is of two groups
        self.groups = [range(len(dataset))] if groups is None else groups
        self.may_be_empty = may_be_empty  # whether it is no mistake that no image can be read
        self.skipped: list[tuple[int, str, str]] = []

    def __len__(self) -> int:
        """The number of batches, unless all images of one cannot be read."""
        return sum(-(-len(rows) // self.batch_size) for rows in self.groups)

    @property
    def image_count(self) -> int:
        """The number of images, unreadable ones among them."""
        return sum(map(len, self.groups))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.skipped.clear()
        size, given = self.batch_size, 0
        starts = [(rows, start) for rows in self.groups for start in range(0, len(rows), size)]
        wanted = [rows[start : start + size] for rows, start in starts]
        for pieces in decoded(self.dataset, wanted, self.num_workers):
            for unread in (unread for piece in pieces for unread in piece.unread):
                if not self.skip:
                    raise UnreadableImage(unread.message, unread.file, unread.reason)
                self.skipped.append(unread[:3])
            if batch := _joined(pieces):
                given += 1
                yield batch
            del pieces, batch
        if self.skipped and not given and not self.may_be_empty:
            first = SkippedImage(*self.skipped[0][1:])
            raise ResiDualError(
                f"wanted images, but none of the {self.image_count} of {self.dataset.name} could "
                f"be read; the first: {first}."
            )


def _joined(pieces: list[Piece]) -> dict[str, Tensor]:
    """One batch of its pieces; empty where no image could be read."""
    found = [piece for piece in pieces if piece.rows]
    names = found[0].tensors if found else ()
    batch = {name: torch.cat([piece.tensors[name] for piece in found]) for name in names}
    if batch:
        batch["index"] = torch.tensor([row for piece in found for row in piece.rows])
    return batch


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
