"""Images for methods that need more than coordinates: read once, kept as far as there is room."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...data import ProcessedImages, batches, collate

ROOM = 2**31  # bytes of prepared images that stay in memory: 3,500 of 224 pixels


@dataclass
class Room:
    """For the images of all data sets of a model: bytes that are left."""

    left: int = ROOM


@dataclass
class Pixels:
    """A split as its model takes it; what was read stays in memory, as far as there is room."""

    dataset: ProcessedImages  # the images
    room: Room = field(default_factory=Room)  # shared with others
    _kept: dict[int, dict[str, Any]] = field(default_factory=dict)

    def batches(self, rows: Tensor, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of some images in the order given, each with what `collate` gives of it."""
        if all(row in self._kept for row in rows.tolist()):
            for part in rows.split(size):
                yield collate([self._kept[row] for row in part.tolist()])
            return
        for batch in batches(self.dataset, batch_size=size, rows=rows.tolist()):
            for place, row in enumerate(batch.pop("index").tolist()):
                size = sum(tensor[place].nbytes for tensor in batch.values())
                if row not in self._kept and size <= self.room.left:
                    self.room.left -= size
                    # a copy: a view would keep its whole batch
                    self._kept[row] = {name: t[place].clone() for name, t in batch.items()}
            yield batch

    def forget(self) -> None:
        """Give the room back."""
        kept = (tensor for item in self._kept.values() for tensor in item.values())
        self.room.left += sum(tensor.nbytes for tensor in kept)
        self._kept.clear()


@dataclass(frozen=True)
class Images:
    """Some images of a split, by their rows (N,)."""

    pixels: Pixels
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, places: Tensor) -> "Images":
        """Those at some places among them."""
        return replace(self, rows=self.rows[places])

    def batches(self, size: int = 64) -> Iterator[dict[str, Tensor]]:
        """In their order."""
        return self.pixels.batches(self.rows, size)
