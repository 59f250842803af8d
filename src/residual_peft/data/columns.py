"""Which column holds the images, which the labels, and what the labels mean."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features

from ..errors import ResiDualError, some
from .class_names import check_class_names
from .labels import MANY_LABELS, ONE_LABEL, label_item, labelling_in, labelling_of_column
from .labels.columns import in_texts, labels_in, with_class_numbers
from .skipped import SkippedImage
from .stratification import Labels

IMAGE_COLUMNS = ("image", "img", "webp", "jpg", "jpeg", "png", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")
_USUAL = {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS}


@dataclass(frozen=True)
class Options:
    """What was asked for beside the source."""

    config: str | None = None  # of a Hub dataset that has several
    revision: str | None = None  # on the Hub
    token: str | None = None  # for the Hub
    image_column: str | None = None  # of a table; found when None
    label_column: str | None = None  # likewise
    group_column: str | None = None  # of a table, kept beside the two; None for none
    numbers: bool = False  # whether somebody says what labels that are numbers mean


def standard_columns(dataset: Dataset, options: Options, name: str) -> Dataset:
    """The dataset with nothing but a column `image` (datasets.Image) and a column `label`.

    And one `group`, where a column of groups is named.

    Raises:
        ResiDualError: no rows, a transform, no such column, or several that could be meant.
    """
    check_format(dataset, name)
    if len(dataset) == 0:
        raise ResiDualError(f"found no images in {name}: it has no rows.")
    features, group = dataset.features, options.group_column
    rest = Features({c: kind for c, kind in features.items() if c != group})
    aside = f"{name} (but for its groups, '{group}')" if len(rest) < len(features) else name
    image = options.image_column or image_column_of(rest, aside)
    label = options.label_column or _label_column(rest, image, aside)
    chosen = {"image": image, "label": label} | ({} if group is None else {"group": group})
    for column in chosen.values():
        if column not in features:
            raise ResiDualError(
                f"{name} has no column '{column}', only {', '.join(features)}; name another, or "
                "list the images in a table that has it."
            )
    for one, other in itertools.combinations(chosen, 2):
        if chosen[one] == chosen[other]:
            raise ResiDualError(
                f"the column '{chosen[one]}' of {name} cannot be both {one} and {other}."
            )
    dataset = dataset.select_columns(list(chosen.values())).with_format(None)
    dataset = dataset.rename_columns({column: f"_{own}" for own, column in chosen.items()})
    dataset = dataset.rename_columns({f"_{own}": own for own in chosen})
    try:
        return dataset.cast_column("image", datasets.Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ResiDualError(
            f"the column '{image}' of {name} holds {features[image]}, which is no image; name the "
            "image column."
        ) from error


def check_format(dataset: Any, name: str) -> None:
    """Refuse what is no split, or has a transform, which would be ignored.

    Images are read as they are stored: what is fitted in one pass has seen every image once, so
    that no augmentation could change it. A format such as "torch" is about how rows are given out.
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


def image_column_of(features: Features, name: str) -> str:
    """The column that holds the images, by its type and name.

    Raises:
        ResiDualError: none, or several that could be meant.
    """
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    return _column(features, "image", typed, list(features), name)


def _label_column(features: Features, image: str, name: str) -> str:
    typed: list[str] = []
    for labels in (ONE_LABEL, MANY_LABELS):
        own = [c for c, kind in features.items() if labelling_of_column(kind) is labels]
        typed = typed or [c for c in own if isinstance(label_item(features[c]), ClassLabel)]
    others = [column for column in features if column != image]
    return _column(features, "label", typed, others, name)


def _column(features: Features, kind: str, typed: list[str], columns: list[str], name: str) -> str:
    """The only column of the type, or of those (of all, where there is none) the usual name's."""
    if len(typed) == 1:
        return typed[0]
    by_name = [column for column in _USUAL[kind] if column in (typed or columns)]
    if not by_name:
        what = f"several {kind} columns ({', '.join(typed)})" if typed else f"no {kind} column"
        raise ResiDualError(
            f"{name} has {what} among {', '.join(features)}; name it with {kind}_column=..."
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
    labelling = labelling_of_column(features[0])
    kind = _kind(next(iter(parts.values())))
    if not kind.startswith(("int", "uint", "string", "large_string")) or any(
        labelling_of_column(other) is not labelling for other in features
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
            split = next(s for s, part in parts.items() if strange[0] in _texts({s: part}))
            raise ResiDualError(
                f"{name}, split {split}, has the label '{strange[0]}', which is none of the "
                f"{known} ({some(given)})."
            )
        own = texts if given is None else given
    if own is None and class_names is None:
        class_names = known_classes
    if own is None and class_names is None:
        raise ResiDualError(
            f"the labels of {name} are bare numbers; say what they mean with class_names=[...], "
            "or give a table with names in their place."
        )
    least = 2 if known_classes is None else 1
    names = check_class_names(own or [] if class_names is None else class_names, least)
    if own is not None and len(own) != len(names):
        raise ResiDualError(f"{name} has {len(own)} classes, got {len(names)} class names.")
    return names, {s: with_class_numbers(part, names, s, name) for s, part in parts.items()}


def _with_one_meaning(
    parts: dict[str, Dataset], name: str
) -> tuple[dict[str, Dataset], list[str] | None]:
    """The parts, as texts where a number means one class here and another there; the first's names.

    Raises:
        ResiDualError: bare numbers in one part and texts in another.
    """
    named = {s: getattr(label_item(p.features["label"]), "names", None) for s, p in parts.items()}
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
    if bare := [split for split in parts if named[split] is None and split not in texts]:
        raise ResiDualError(
            f"the labels of {name} are numbers without a meaning in the split {bare[0]}, and have "
            "names in another; give them the same kind in all splits."
        )
    return {
        split: part if split in texts else in_texts(part, split, name)
        for split, part in parts.items()
    }, own


def _kind(part: Dataset) -> str:
    """What a label is, or in a list of them each."""
    return str(getattr(label_item(part.features["label"]), "dtype", None))


def _texts(parts: Mapping[str, Dataset]) -> set[str]:
    """All labels that occur, none of them missing."""
    columns = ((labelling_of_column(p.features["label"]), labels_in(p)) for p in parts.values())
    return {label for labelling, column in columns for label in labelling.each(column)} - {None}


def check_classes(
    labels: Mapping[str, Labels],
    names: tuple[str, ...],
    source: str,
    unread: Callable[[int], SkippedImage | None] | None = None,
) -> None:
    """Raise a ResiDualError that names the classes with no image in any split.

    `unread` gives of a class, by its number, the first image that cannot be read; None where all
    can.
    """
    every = np.concatenate(list(labels.values()))
    counts = labelling_in(every).counts(every, len(names)).tolist()
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        listed = some([f"'{name}'" for name in empty])
        if unread:
            first = unread(names.index(empty[0]))
            raise ResiDualError(
                f"no image of {len(empty)} of the {len(names)} classes of {source} can be read "
                f"({listed}){f'; the first that cannot is {first}' if first else ''}. Repair or "
                "replace the images, or leave the class out."
            )
        raise ResiDualError(
            f"{source} has no images of {len(empty)} of its {len(names)} classes ({listed}); add "
            "images or leave the class out."
        )
