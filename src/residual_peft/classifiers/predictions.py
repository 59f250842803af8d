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

    >>> print(Prediction("dog", 1, 0.75, (0.25, 0.75), ("dog",), ("cat", "dog"), "a.png"))
    a.png: dog 0.750, cat 0.250
    """

    label: str
    index: int
    score: float  # the label's probability
    probabilities: tuple[float, ...]  # of every class, in the order of the class names
    labels: tuple[str, ...]  # several: those of probability >= 0.5, maybe none; one: (label,)
    class_names: tuple[str, ...] = field(default=(), repr=False)
    file: str | None = None  # of the image, where it came as a path
    several: bool = field(default=False, repr=False)  # whether an image may have several labels
    plausible: tuple[str, ...] | None = None  # classes that hold the right one as often as asked

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most likely classes (all, where there are fewer) and their probabilities.

        Raises:
            ResiDualError: k is below 1.
        """
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
        return labelling_of(self.several).told(self.labels, probabilities)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: file (None where unknown), label, score, labels, probabilities by class."""
        found = {
            "file": self.file,
            "label": self.label,
            "score": self.score,
            "labels": list(self.labels),
            "probabilities": dict(zip(self.class_names, self.probabilities, strict=True)),
        }
        return found if self.plausible is None else found | {"plausible": list(self.plausible)}

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {score:.3f}" for name, score in self.top(3))
        return printable(shown if self.file is None else f"{self.file}: {shown}")


def predictions_of(
    logits: Tensor,
    class_names: Sequence[str],
    multi_label: bool = False,
    files: Sequence[str | None] | None = None,
    plausible: Tensor | None = None,
) -> list[Prediction]:
    """One prediction per row of logits (N, C).

    Args:
        logits: (N, C), their bias included.
        class_names: C names.
        multi_label: whether an image may have several labels, or none.
        files: of the N images, None of one that has none.
        plausible: which classes are in each image's set, bool (N, C).
    """
    labelling = labelling_of(multi_label)
    names = tuple(class_names)
    rows = zip(
        logits.argmax(-1).tolist(),  # sigmoids of high logits are all 1, their logits are not
        labelling.probabilities(logits),
        labelling.predicted(logits),
        [None] * len(logits) if files is None else files,
        [None] * len(logits) if plausible is None else plausible,
        strict=True,
    )
    return [
        Prediction(
            names[index],
            index,
            float(scores[index]),
            tuple(scores.tolist()),
            tuple(names[number] for number in labelling.class_numbers(labels)),
            names,
            file,
            multi_label,
            None
            if inside is None
            else tuple(names[n] for n in inside.nonzero().flatten().tolist()),
        )
        for index, scores, labels, file, inside in rows
    ]
