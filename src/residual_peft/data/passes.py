"""Files of images, and batches of any images in order, decoded beside the model.

Needs no `datasets`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import ResiDualError
from .decoding import Images, decoded
from .images import UnreadableImage, to_rgb
from .processors import least_side, model_inputs
from .skipped import SkippedImage


class ImageFiles(torch.utils.data.Dataset):
    """Files as the model takes them: item -> `pixel_values` (3, H, W), and what else it takes.

    They are decoded when they are asked for, large ones no larger than the processor needs. In
    place of a path there may be why there is no image.
    """

    name = "the files"

    def __init__(self, files: Sequence[str | SkippedImage], image_processor: Any) -> None:
        if image_processor is None:
            raise no_processor()
        self.files, self.image_processor = list(files), image_processor
        self.least = least_side(image_processor)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        if isinstance(file, SkippedImage):
            raise UnreadableImage(str(file), file.file, file.reason)
        image = to_rgb(file, least=self.least)
        return prepared(self.image_processor, image, f"'{file}'", file)


def prepared(processor: Any, image: Image.Image, title: str, file: str) -> dict[str, Any]:
    """What a model takes of one RGB image, called `title` in messages; `file` is its path, if any.

    Raises:
        UnreadableImage: the processor refuses it.
    """
    try:
        found = model_inputs(processor, [image])
    except Exception as error:  # processors raise many kinds
        raise UnreadableImage(
            f"the image processor could not prepare {title}, {image.width} x {image.height} "
            f"pixels ({error}).",
            file,
            f"the image processor refused it ({error})",
        ) from error
    return {name: tensor[0] for name, tensor in found.items()}


def no_processor() -> ResiDualError:
    """What to say where a classifier cannot prepare images."""
    return ResiDualError(
        "this classifier has no image processor to prepare images with; pass "
        "image_processor=... when making it."
    )


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
        dataset: Images,
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
            if read := [piece for piece in pieces if piece.rows]:
                given += 1
                names = read[0].tensors
                batch = {name: torch.cat([piece.tensors[name] for piece in read]) for name in names}
                yield batch | {"index": torch.tensor([row for piece in read for row in piece.rows])}
                del batch
            del pieces, read
        if self.skipped and not given and not self.may_be_empty:
            first = SkippedImage(*self.skipped[0][1:])
            raise ResiDualError(
                f"wanted images, but none of the {self.image_count} of {self.dataset.name} could "
                f"be read; the first: {first}."
            )
