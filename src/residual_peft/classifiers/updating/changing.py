"""More images for a classifier's head, fewer, or another class."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ...bases.reading import ReadBatch, reading
from ...data.class_names import check_class_names
from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError
from ...tuner import adapted_tower, coordinates_of, readout_state
from ..trained_head import embedding_features
from .kept import HOW, KeptStatistics, head_of

if TYPE_CHECKING:
    from ..headed import HeadedClassifier


def features_of(
    classifier: "HeadedClassifier", batches: Iterable[Any], **options: Any
) -> Iterator[tuple[ReadBatch, Tensor]]:
    """Batches of images as a classifier's head reads them, (B, K); `options` of `reading`."""
    model = classifier.model
    if head_of(classifier).features == "embedding":
        for seen in reading(model, None, batches, **options):
            yield seen, embedding_features(seen.readout)
        return
    state, tower = readout_state(model), adapted_tower(model)
    for seen in reading(model, tower, batches, taps=True, check="first", **options):
        assert seen.capture is not None
        yield seen, coordinates_of(state, seen.capture)


@dataclass(frozen=True)
class Read:
    """Images as a head reads them."""

    features: Tensor  # (n, K), on the CPU
    readout: Tensor  # of the unadapted model, of length 1 each (n, d)

    @classmethod
    def of(cls, classifier: "HeadedClassifier", batches: Iterable[Any], **options: Any) -> "Read":
        """In memory: K + d numbers an image."""
        found, readout = [], []
        for seen, features in features_of(classifier, batches, **options):
            found.append(features.detach().cpu())
            readout.append(embedding_features(seen.readout).detach().cpu())
        return cls(torch.cat(found), torch.cat(readout))

    def some(self, rows: Tensor) -> "Read":
        """Some of them."""
        return Read(self.features[rows], self.readout[rows])


def kept_of(classifier: "HeadedClassifier") -> KeptStatistics:
    """A classifier's statistics, checked; refused where there are none, or those of another."""
    head, kept = head_of(classifier), classifier.statistics
    if kept is None:
        raise ResiDualError(
            f"the class head ({head.method or 'of an unknown fit'}) has no statistics of its "
            f"images, without which it can only be fitted anew: {HOW}."
        )
    kept.check(classifier)
    return kept


def change(
    classifier: "HeadedClassifier", read: Read, labels: Tensor, *, forget: bool = False
) -> None:
    """Add images to a classifier's head or take them out, with labels (n,), or (n, C) 0 and 1."""
    kept = kept_of(classifier)
    features = read.features[:, kept.columns]
    with _naming(classifier):
        (kept.sums.forget if forget else kept.sums.add)(features, labels)
    _put(classifier, kept, keeps_scores=not forget)


def add_class(
    classifier: "HeadedClassifier", name: str, read: Read, embedding: Tensor | None = None
) -> int:
    """One more class for the head: `ZeroShotClassifier.add_class` of images read; its number."""
    kept, number = kept_of(classifier), head_of(classifier).class_count
    _check_one_label(classifier)
    names, rows = list(classifier.class_names), classifier.class_embeddings
    if name in names[:number]:
        raise ResiDualError(f"the class head has the class '{name}' already: update it instead.")
    if name in names:
        place = names.index(name)
        own = rows[place]
        names.pop(place)
        rows = torch.cat([rows[:place], rows[place + 1 :]])
        embedding = own if embedding is None else embedding
    elif embedding is None and classifier.templates:
        raise ResiDualError(
            f"wanted an embedding of '{name}' beside those of the other classes' texts: give "
            "embedding=, such as a row of embed_classes."
        )
    elif embedding is None:
        embedding = read.readout.double().mean(0)
    row = torch.as_tensor(embedding).detach().reshape(1, -1).to(rows)
    if row.shape[1] != rows.shape[1] or not row.isfinite().all() or not row.any():
        raise ResiDualError(
            f"wanted an embedding of {rows.shape[1]} finite numbers, got {tuple(row.shape)}."
        )
    names.insert(number, name)
    checked = check_class_names(names)
    kept.sums.add_class(read.features[:, kept.columns])
    rows = torch.cat([rows[:number], functional.normalize(row, dim=1), rows[number:]])
    _put(classifier, kept, classes=(checked, rows))
    return number


def remove_class(
    classifier: "HeadedClassifier", name: str, reader: Callable[[], Read] | None = None
) -> None:
    """Take a class out of head and classifier; `reader` gives its images where they are needed."""
    names, rows = classifier.class_names, classifier.class_embeddings
    if name not in names or len(names) < 3:
        raise ResiDualError(
            f"wanted one of {len(names)} classes to remove, and two to be left, got '{name}'."
        )
    place, head = names.index(name), classifier.head
    kept = torch.arange(len(names), device=rows.device) != place
    classes = (tuple(each for each in names if each != name), rows[kept])
    if head is None or place >= head.class_count:
        classifier.class_names, classifier.class_embeddings = classes
        return
    statistics = kept_of(classifier)
    _check_one_label(classifier)
    if head.class_count < 3:
        raise ResiDualError("wanted a class head of two classes to be left, got one: fit anew.")
    features = None if reader is None else reader().features[:, statistics.columns]
    with _naming(classifier):
        statistics.sums.remove_class(place, features)
    _put(classifier, statistics, classes=classes)


def _put(
    classifier: "HeadedClassifier",
    kept: KeptStatistics,
    *,
    classes: tuple[tuple[str, ...], Tensor] | None = None,
    keeps_scores: bool = False,
) -> None:
    """Give a classifier the head of its sums as they are now, and with it other classes."""
    # thresholds were of the logits before
    head = replace(kept.changed(head_of(classifier)), thresholds=None)
    if not keeps_scores:  # of images that are gone, or of other classes
        head = replace(head, left_out_scores=None, known=None)
    if classes is not None:
        classifier.class_names, classifier.class_embeddings = classes
    classifier.set_head(head, statistics=kept)


def _check_one_label(classifier: "HeadedClassifier") -> None:
    why = "the old images would need labels of a new class: fit anew"
    check_same(ONE_LABEL, classifier.labelling, why)


@contextmanager
def _naming(classifier: "HeadedClassifier") -> Iterator[None]:
    """What the sums call "class 2" has a name."""
    try:
        yield
    except ResiDualError as error:
        names = classifier.class_names

        def named(match: re.Match[str]) -> str:
            return f"class '{names[int(match[1])]}'" if int(match[1]) < len(names) else match[0]

        raise ResiDualError(re.sub(r"class (\d+)\b", named, str(error))) from error
