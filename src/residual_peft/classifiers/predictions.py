"""What logits say of images, and which labels suit them: one label per image, or several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data.labels import labelling_of
from ..errors import ResiDualError, printable


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    With several labels per image, each class's probability is a sigmoid of its own, and `label` is
    the most likely class whether or not it is among the labels.

    Attributes:
        label: the most likely class.
        index: its number.
        score: the label's probability.
        probabilities: of every class, in the order of the class names.
        labels: several: from the class's threshold on, maybe none; one: (label,).
        class_names: of all C classes.
        file: of the image, where it came as a path.
        several: whether an image may have several labels.
        plausible: classes that hold the right one as often as asked.
        alike: share of images of the classes that lie as far from them, told by left-out ones.
        none_of_these: whether that is too small a share; None where not asked.
        plausible_by: what says so: "held-out", "jackknife+" or "jackknife".

    >>> print(Prediction("dog", 1, 0.75, (0.25, 0.75), ("dog",), ("cat", "dog"), "a.png"))
    a.png: dog 0.750, cat 0.250
    """

    label: str
    index: int
    score: float
    probabilities: tuple[float, ...]
    labels: tuple[str, ...]
    class_names: tuple[str, ...] = field(default=(), repr=False)
    file: str | None = None
    several: bool = field(default=False, repr=False)
    plausible: tuple[str, ...] | None = None
    alike: float | None = None
    none_of_these: bool | None = None
    plausible_by: str | None = None

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most likely classes (all, where there are fewer) and their probabilities."""
        if k < 1:
            raise ResiDualError(f"wanted the top 1 or more classes, got {k}.")
        # what rounding made equal stays in order, the label first
        order = sorted(
            range(len(self.probabilities)), key=lambda i: (-self.probabilities[i], i != self.index)
        )
        return [(self.class_names[i], self.probabilities[i]) for i in order[:k]]

    def told(self, k: int) -> str:
        """The k most likely classes for people; with several labels per image its labels first."""
        probabilities = ", ".join(f"{name} {score:.3f}" for name, score in self.top(k))
        told = labelling_of(self.several).in_words(self.labels, probabilities)
        return f"none of these; nearest: {told}" if self.none_of_these else told

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: file (None where unknown), label, score, labels, probabilities by class."""
        found = {
            "file": self.file,
            "label": self.label,
            "score": self.score,
            "labels": list(self.labels),
            "probabilities": dict(zip(self.class_names, self.probabilities, strict=True)),
        }
        return found | self.beyond()

    def beyond(self) -> dict[str, Any]:
        """What is said beside the probabilities, JSON-able: only what there is."""
        plausible = None if self.plausible is None else list(self.plausible)
        said = {
            "plausible": plausible,
            "plausible_by": self.plausible_by,
            "alike": self.alike,
            "none_of_these": self.none_of_these,
        }
        return {name: value for name, value in said.items() if value is not None}

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {score:.3f}" for name, score in self.top(3))
        shown = f"none of these; nearest: {shown}" if self.none_of_these else shown
        return printable(shown if self.file is None else f"{self.file}: {shown}")


def predictions_of(
    logits: Tensor,
    class_names: Sequence[str],
    multi_label: bool = False,
    files: Sequence[str | None] | None = None,
    plausible: Tensor | None = None,
    *,
    plausible_by: str | None = None,
    alike: Tensor | None = None,
    none_of_these: float | None = None,
    thresholds: Tensor | None = None,
) -> list[Prediction]:
    """One prediction per row of logits (N, C), their bias included.

    Args:
        logits: (N, C).
        class_names: C names.
        multi_label: whether an image may have several labels, or none.
        files: of the N images, None of one that has none.
        plausible: which classes are in each image's set, bool (N, C).
        plausible_by: what these come from.
        alike: how like the fit's images each is (N,).
        none_of_these: from which value of `alike` on an image is of the classes; None not asked.
        thresholds: of several labels, the logit from which on an image has a class (C,); None for
            0, a probability of one half.
    """
    labelling = labelling_of(multi_label)
    names = tuple(class_names)
    rows = zip(
        logits.argmax(-1).tolist(),  # sigmoids of high logits are all 1, their logits are not
        labelling.probabilities(logits),
        labelling.predicted(logits if thresholds is None else logits - thresholds),
        [None] * len(logits) if files is None else files,
        [None] * len(logits) if plausible is None else plausible,
        [None] * len(logits) if alike is None else alike.tolist(),
        strict=True,
    )
    return [
        Prediction(
            label=names[index],
            index=index,
            score=float(scores[index]),
            probabilities=tuple(scores.tolist()),
            labels=tuple(names[number] for number in labelling.class_numbers(labels)),
            class_names=names,
            file=file,
            several=multi_label,
            plausible=None
            if inside is None
            else tuple(names[n] for n in inside.nonzero().flatten().tolist()),
            alike=like,
            none_of_these=None if none_of_these is None or like is None else like <= none_of_these,
            plausible_by=plausible_by,
        )
        for index, scores, labels, file, inside, like in rows
    ]
