"""What logits say of images, and which labels suit them: one label per image, or several."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data.labels import labelling_of


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    With several labels per image, each class's probability is a sigmoid of its own, and `label` is
    the most likely class whether or not it is among the labels.
    """

    label: str
    index: int
    score: float  # the label's probability
    probabilities: tuple[float, ...]  # of every class, in the order of the class names
    labels: tuple[str, ...]  # several: those of probability >= 0.5, maybe none; one: (label,)


def predictions_of(
    logits: Tensor, class_names: Sequence[str], multi_label: bool = False
) -> list[Prediction]:
    """One prediction per row of logits (N, C).

    Args:
        logits: (N, C), their bias included.
        class_names: C names.
        multi_label: whether an image may have several labels, or none.
    """
    labelling = labelling_of(multi_label)
    rows = zip(
        logits.argmax(-1).tolist(),  # sigmoids of high logits are all 1, their logits are not
        labelling.probabilities(logits),
        labelling.predicted(logits),
        strict=True,
    )
    return [
        Prediction(
            class_names[index],
            index,
            float(scores[index]),
            tuple(scores.tolist()),
            tuple(class_names[number] for number in labelling.class_numbers(labels)),
        )
        for index, scores, labels in rows
    ]
