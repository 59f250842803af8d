"""A split -> what the model, the Trainer and the passes over images take."""

from typing import Any

import datasets
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import ResiDualError
from ..images import model_inputs, to_rgb
from .columns import check_format
from .label_lists import item_of, multi_hot


class ProcessedImages(torch.utils.data.Dataset):
    """A split as the model and the Trainer take it: item -> `pixel_values` (3, H, W), `labels`.

    Models that take more of an image than its pixels get that, too (`images.model_inputs`).

    `labels` is a class number, or for a column of lists C zeros and ones, uint8.

    A dataset with a transform is refused: it would be ignored. Images are decoded when they are
    asked for; an image that cannot be read is a ResiDualError
    with its path or row.
    """

    def __init__(self, dataset: Dataset, image_processor: Any, name: str = "the dataset") -> None:
        check_format(dataset, name)
        self.dataset = dataset.cast_column("image", datasets.Image(decode=False)).with_format(None)
        self.image_processor = image_processor
        self.name = name
        self.classes = _classes_of(dataset, name)  # None unless there are several labels per image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[int(index)]
        stored = row["image"]
        path = stored.get("path") if stored else None
        title = f"image {index} of {self.name}" + (f" ('{path}')" if path else "")
        if stored is None:
            raise ResiDualError(f"{title} is missing (empty row); remove it.")
        prepared = model_inputs(self.image_processor, [to_rgb(stored, title)])
        item: dict[str, Any] = {name: tensor[0] for name, tensor in prepared.items()}
        if "label" not in row:
            return item
        if self.classes is None:
            return item | {"labels": row["label"]}
        return item | {"labels": torch.from_numpy(multi_hot([row["label"]], self.classes)[0])}


def _classes_of(dataset: Dataset, name: str) -> int | None:
    """How many classes lists of labels are of; None where labels are no lists."""
    item = item_of(dataset.features.get("label"))
    if item is not None and not isinstance(item, ClassLabel):
        raise ResiDualError(
            f"the labels of {name} are lists of {item}: how many classes there are is not to be "
            "seen. load_data(...) gives them names."
        )
    return None if item is None else int(item.num_classes)


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Items of `ProcessedImages` -> a batch: `pixel_values` (B, 3, H, W) and `labels`.

    Those are (B,) int64, or with several labels per image (B, C) uint8.
    """
    names = [name for name in items[0] if name != "labels"]
    batch = {name: torch.stack([item[name] for item in items]) for name in names}
    if "labels" in items[0]:
        labels = [torch.as_tensor(item["labels"]) for item in items]
        batch["labels"] = torch.stack(labels)
    return batch


def batches(
    dataset: Dataset | ProcessedImages,
    image_processor: Any = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    name: str = "the dataset",
) -> DataLoader:
    """The split's batches in order, for `fit_bases`, for coordinates and for evaluation."""
    if not isinstance(dataset, ProcessedImages):
        dataset = ProcessedImages(dataset, image_processor, name)
    return DataLoader(dataset, batch_size, collate_fn=collate, num_workers=num_workers)
