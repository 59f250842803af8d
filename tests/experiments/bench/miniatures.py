"""Copies of the Hub's data sets with few images: the same splits, columns, kinds and layout.

What is said here was read on the data sets' pages, and is told apart from what registries say: an
entry that names a column or split that is not there does not load.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

WORSE = ("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur",
         "pixelate", "spatter")  # fmt: skip


@dataclass(frozen=True)
class Copy:
    """How a data set lies on the Hub.

    Attributes:
        splits: as they are called there.
        image: the column of images.
        label: the column of class labels.
        more: columns beside them.
        classes: how many in a copy, where the Hub's number is what an entry counts on.
        config: of the data set, where it has a name.
        others: configurations beside it, which are not images with labels.
        unlabelled: splits whose labels are -1.
    """

    splits: tuple[str, ...] = ("train", "test")
    image: str = "image"
    label: str = "label"
    more: dict[str, object] = field(default_factory=dict)
    classes: int = 6
    config: str | None = None
    others: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()


COPIES = {
    "uoft-cs/cifar10": Copy(image="img"),
    "uoft-cs/cifar100": Copy(
        image="img", label="fine_label", more={"coarse_label": ClassLabel(names=["a", "b"])}
    ),
    "tanganke/dtd": Copy(),
    "tanganke/eurosat": Copy(classes=10),
    "tanganke/gtsrb": Copy(("train", "test", *WORSE), classes=43),
    "ylecun/mnist": Copy(classes=10, config="mnist"),
    "timm/resisc45": Copy(("train", "validation", "test"), more={"image_id": Value("string")}),
    "tanganke/stanford_cars": Copy(("train", "test", *WORSE)),
    "tanganke/sun397": Copy(),
    "ufldl-stanford/svhn": Copy(
        ("train", "test", "extra"), classes=10, config="cropped_digits", others=("full_numbers",)
    ),
    "ILSVRC/imagenet-1k": Copy(("train", "validation", "test"), unlabelled=("test",)),
    "flwrlabs/caltech101": Copy(("train",), more={"filename": Value("string")}),
    "timm/oxford-iiit-pet": Copy(
        more={"image_id": Value("string"), "label_cat_dog": ClassLabel(names=["cat", "dog"])}
    ),
    "dpdl-benchmark/oxford_flowers102": Copy(("train", "validation", "test")),
    "ethz/food101": Copy(("train", "validation")),
    "Donghyun99/FGVC-Aircraft": Copy(("train", "val", "test")),
}
EACH = {"train": 10}
"""Images of each class by split; four in all others."""


def count_of(copy: Copy, split: str) -> int:
    """Images of a split of a copy."""
    return copy.classes * EACH.get(split, 4)


def write_copy(folder: Path, copy: Copy, seed: int = 3) -> None:
    """The files of a repository."""
    random = np.random.default_rng(seed)
    configs = [copy.config or "default", *copy.others]
    for config in configs:
        place = folder / ("data" if len(configs) == 1 else config)
        place.mkdir(parents=True)
        for split in copy.splits:
            rows = _rows(copy, split, random)
            rows.to_parquet(place / f"{split}-00000-of-00001.parquet")
    if len(configs) > 1 or copy.config:
        (folder / "README.md").write_text(_card(configs, copy.splits))


def _rows(copy: Copy, split: str, random: np.random.Generator) -> Dataset:
    count = count_of(copy, split)
    labels = [-1 if split in copy.unlabelled else row % copy.classes for row in range(count)]
    pixels = (
        random.integers(0, 60, (count, 8, 8, 3)) + np.array(labels)[:, None, None, None] % 7 * 25
    )
    names = [f"thing_{number}" for number in range(copy.classes)]
    columns = {copy.image: ImageFeature(), copy.label: ClassLabel(names=names), **copy.more}
    values: dict[str, Sequence[object]] = {
        copy.image: [Image.fromarray(each.astype(np.uint8)) for each in pixels],
        copy.label: labels,
    }
    values |= {
        name: [0 if isinstance(kind, ClassLabel) else str(row) for row in range(count)]
        for name, kind in copy.more.items()
    }
    return Dataset.from_dict(values, features=Features(columns))


def _card(configs: Sequence[str], splits: Sequence[str]) -> str:
    lines = ["---", "configs:"]
    for config in configs:
        folder = "data" if len(configs) == 1 else config
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    return "\n".join([*lines, "---", ""])


def write_frames(folder: Path) -> None:
    """UCF101's middle frames as folders of class folders."""
    random = np.random.default_rng(4)
    for split, each in (("train", 10), ("test", 4)):
        for name in ("Apply_Eye_Makeup", "Archery", "Yo_Yo", "Surfing"):
            (folder / split / name).mkdir(parents=True)
            for number in range(each):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")
