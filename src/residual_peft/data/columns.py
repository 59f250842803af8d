"""Which column holds the images, which the labels, and what the labels mean."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, Features

from ..errors import ResiDualError
from .class_names import check_class_names
from .label_lists import item_of, label_lists, labels_in, multi_hot
from .skipped import SkippedImage

IMAGE_COLUMNS = ("image", "img", "webp", "jpg", "jpeg", "png", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")


def standard_columns(
    dataset: Dataset, image_column: str | None, label_column: str | None, name: str
) -> Dataset:
    """The dataset with nothing but a column `image` (datasets.Image) and a column `label`.

    Raises:
        ResiDualError: no rows, a transform, no such column, or several that could be meant.
    """
    check_format(dataset, name)
    if len(dataset) == 0:
        raise ResiDualError(f"found no images in {name}: it has no rows.")
    features = dataset.features
    image = image_column or _image_column(features, name)
    label = label_column or _label_column(features, image, name)
    for column in (image, label):
        if column not in features:
            raise ResiDualError(
                f"{name} has no column '{column}', only {', '.join(features)}; name another."
            )
    if image == label:
        raise ResiDualError(f"the column '{image}' of {name} cannot be both image and label.")
    dataset = dataset.select_columns([image, label]).with_format(None)
    dataset = dataset.rename_columns({image: "_image", label: "_label"})
    dataset = dataset.rename_columns({"_image": "image", "_label": "label"})
    try:
        return dataset.cast_column("image", datasets.Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ResiDualError(
            f"the column '{image}' of {name} holds {features[image]}, which is no image; name the "
            "image column."
        ) from error


def check_format(dataset: Any, name: str) -> None:
    """Refuse what is no split, or has a transform, which would be ignored.

    Images are read as they are stored.
    What is fitted in one pass has seen every image once, so no augmentation could change it; a
    format such as "torch" is only about how rows are given out, and no matter here.
    """
    if not isinstance(dataset, Dataset):
        raise ResiDualError(
            f"wanted one split of images, a datasets.Dataset, as {name}, got "
            f"{type(dataset).__name__}; load_data(...).test is such a split."
        )
    if dataset.format["type"] == "custom":
        raise ResiDualError(
            f"{name} has a transform (with_transform or set_transform), which would be ignored: "
            "images are read as they are stored. Remove it with dataset.with_format(None); to "
            "augment, give the Trainer a train_dataset of your own."
        )


def _image_column(features: Features, name: str) -> str:
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    candidates = typed or list(features)
    if len(typed) == 1:
        return typed[0]
    by_name = [column for column in IMAGE_COLUMNS if column in candidates]
    if not by_name:
        what = f"several image columns ({', '.join(typed)})" if typed else "no image column"
        raise ResiDualError(
            f"{name} has {what} among {', '.join(features)}; name it with image_column=..."
        )
    return by_name[0]


def _label_column(features: Features, image: str, name: str) -> str:
    typed = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    typed = typed or [c for c, f in features.items() if isinstance(item_of(f), ClassLabel)]
    candidates = typed or [column for column in features if column != image]
    if len(typed) == 1:
        return typed[0]
    by_name = [column for column in LABEL_COLUMNS if column in candidates]
    if not by_name:
        what = f"several label columns ({', '.join(typed)})" if typed else "no label column"
        raise ResiDualError(
            f"{name} has {what} among {', '.join(features)}; name it with label_column=..."
        )
    return by_name[0]


def with_class_labels(
    parts: dict[str, Dataset],
    class_names: Iterable[str] | None,
    name: str,
    known_classes: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], dict[str, Dataset]]:
    """Class names, and the parts with their labels as ClassLabel of these names, or lists of it.

    Where `known_classes` are given, one class will do, and bare numbers are theirs.

    Raises:
        ResiDualError: labels of another kind, missing, outside the classes or without a meaning;
            bad class names.
    """
    parts, own = _with_one_meaning(parts, name)
    features = [part.features["label"] for part in parts.values()]
    several = has_lists(next(iter(parts.values())))
    kind = _kind(next(iter(parts.values())))
    if not kind.startswith(("int", "uint", "string", "large_string")) or any(
        (item_of(other) is not None) != several for other in features
    ):
        raise ResiDualError(
            f"the labels of {name} are {features[0]}; wanted one class per image, as a number or "
            "text, or in all splits a list of them."
        )
    if kind.endswith("string"):
        texts = sorted(_texts(parts))
        given = own if class_names is None else list(class_names)
        if given is not None and (strange := sorted(set(texts) - set(given))):
            known = "class names given" if class_names is not None else "classes of its first split"
            raise ResiDualError(
                f"{name} has the label '{strange[0]}', which is none of the {known}."
            )
        own = texts if given is None else given
    if own is None and class_names is None:
        class_names = known_classes
    if own is None and class_names is None:
        raise ResiDualError(
            f"the labels of {name} are bare numbers; say what they mean with class_names=[...]."
        )
    least = 2 if known_classes is None else 1
    names = check_class_names(own or [] if class_names is None else class_names, least)
    if own is not None and len(own) != len(names):
        raise ResiDualError(f"{name} has {len(own)} classes, got {len(names)} class names.")
    typed = label_lists if several else _as_class_label
    return names, {split: typed(d, names, split, name) for split, d in parts.items()}


def _with_one_meaning(
    parts: dict[str, Dataset], name: str
) -> tuple[dict[str, Dataset], list[str] | None]:
    """The parts, as texts where a number means one class here and another there; the first's names.

    Raises:
        ResiDualError: bare numbers in one part and texts in another.
    """
    named = {split: _names_of(part) for split, part in parts.items()}
    own = next((names for names in named.values() if names is not None), None)
    texts = [split for split, part in parts.items() if _kind(part).endswith("string")]
    differing = len({tuple(names) for names in named.values() if names is not None}) > 1
    if not differing and (own is None or not texts):
        if texts and len(texts) < len(parts):
            raise ResiDualError(
                f"the labels of {name} are text in the split {texts[0]}, and numbers without a "
                "meaning in another; give them the same kind in all splits."
            )
        return parts, own
    return {
        split: part if split in texts else _as_texts(part, named[split], split, name)
        for split, part in parts.items()
    }, own


def _names_of(part: Dataset) -> list[str] | None:
    feature = part.features["label"]
    feature = item_of(feature) or feature
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _kind(part: Dataset) -> str:
    """What a label is, or in a list of them each."""
    feature = part.features["label"]
    return str(getattr(item_of(feature) or feature, "dtype", None))


def _as_texts(part: Dataset, names: list[str] | None, split: str, name: str) -> Dataset:
    """The part with class names in place of class numbers."""
    if names is None:
        raise ResiDualError(
            f"the labels of {name} are numbers without a meaning in the split {split}, and have "
            "names in another; give them the same kind in all splits."
        )

    def text(label: Any, row: int) -> Any:
        if label is None or isinstance(label, list):
            return label and [text(each, row) for each in label]
        _check_range(np.array([label]), tuple(names), split, name, row)
        return names[label]

    found = [text(label, row) for row, label in enumerate(labels_in(part))]
    several = item_of(part.features["label"]) is not None
    kind = datasets.List(datasets.Value("string")) if several else datasets.Value("string")
    return part.remove_columns("label").add_column("label", found, feature=kind)


def has_lists(dataset: Dataset) -> bool:
    """Whether an image may have several labels: its column `label` holds lists."""
    return item_of(dataset.features["label"]) is not None


def _texts(parts: Mapping[str, Dataset]) -> set[str]:
    """All labels that occur, none of them missing."""
    found: set[Any] = set()
    for part in parts.values():
        for label in labels_in(part):
            found.update(label if isinstance(label, list) else [label])
    return found - {None}


def _as_class_label(dataset: Dataset, names: tuple[str, ...], split: str, name: str) -> Dataset:
    feature = dataset.features["label"]
    labels = labels_in(dataset)
    if None in labels:
        raise ResiDualError(
            f"row {labels.index(None)} of {name}, split {split}, has no label; remove it."
        )
    if str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        _check_range(np.asarray(labels), names, split, name)
    if isinstance(feature, ClassLabel) and tuple(feature.names) == names:
        return dataset  # a cast would write every image anew
    features = dataset.features.copy()
    features["label"] = ClassLabel(names=list(names))
    try:
        return dataset.cast(features)
    except Exception:  # what datasets has kept of an earlier cast may have been cut short
        try:
            return dataset.cast(features, load_from_cache_file=False)
        except Exception as error:  # pyarrow's, of many kinds
            raise ResiDualError(
                f"could not read the labels of {name}, split {split} "
                f"({str(error) or repr(error)}); its files may have been cut short."
            ) from error


def _check_range(
    labels: npt.NDArray[np.int64], names: tuple[str, ...], split: str, name: str, first: int = 0
) -> None:
    """Raise a ResiDualError that names the first row, counted from `first`, with no such class."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        every = " (as all of that split: it is unlabelled)" if (labels == -1).all() else ""
        raise ResiDualError(
            f"row {first + outside[0]} of {name}, split {split}, has the label "
            f"{labels[outside[0]]}{every}; wanted 0 to {len(names) - 1} ({len(names)} classes). "
            "Correct or remove it, or choose other splits with splits={...}."
        )


def check_labels(
    dataset: Dataset, names: tuple[str, ...], split: str, name: str
) -> npt.NDArray[np.integer]:
    """The labels of a split: (N,) class numbers, or of lists (N, C) zeros and ones.

    Raises:
        ResiDualError: labels outside the classes; it names the first such row.
    """
    if has_lists(dataset):
        return multi_hot(labels_in(dataset), len(names))
    labels = np.asarray(labels_in(dataset), dtype=np.int64)
    _check_range(labels, names, split, name)
    return labels


def check_classes(
    labels: Mapping[str, npt.NDArray[np.integer]],
    names: tuple[str, ...],
    source: str,
    skipped: Sequence[SkippedImage] = (),
) -> None:
    """Raise a ResiDualError that names the classes with no image in any split.

    Args:
        labels: split -> the classes of its images.
        names: of the classes.
        source: what to call the data.
        skipped: the images that cannot be read, where those are why.
    """
    every = np.concatenate(list(labels.values()))
    counts = every.sum(0) if every.ndim == 2 else np.bincount(every, minlength=len(names))
    if empty := [names[i] for i in np.flatnonzero(counts == 0)]:
        listed = ", ".join(f"'{name}'" for name in empty[:5]) + (", ..." if empty[5:] else "")
        if skipped:
            raise ResiDualError(
                f"no image of {len(empty)} of the {len(names)} classes of {source} can be read "
                f"({listed}); the first that cannot is {skipped[0]}. Repair or replace the images, "
                "or leave the class out."
            )
        raise ResiDualError(
            f"{source} has no images of {len(empty)} of its {len(names)} classes ({listed}); add "
            "images or leave the class out."
        )
