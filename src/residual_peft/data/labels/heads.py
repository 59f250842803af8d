"""What fitting and reading a class head asks of labels: of one per image, and of several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import ResiDualError, short

T = TypeVar("T")


class HeadsOfOneLabel:
    """With one label per image a head is one decision."""

    def image_weights(self, labels: Tensor, weights: Tensor) -> Tensor | None:
        """Of each image (N,), from those of its class (C,); None where all weigh the same."""
        return weights[labels.long()]

    def leaves_blocks(self, counts: Tensor, small: int) -> bool:
        """Whether a block of every class is left out at a time: one class is small."""
        return int(counts.min()) < small

    def may_leave_out(self, counts: Tensor) -> bool:
        """Whether something is left to learn from without an image: a class has a second one."""
        return int(counts.max()) > 1

    def first_rows(
        self, labels: Tensor, order: Tensor, classes: int, share: tuple[int, int]
    ) -> list[Tensor]:
        """Of each class the first rows in some order (N,) that no draw is to do without.

        Two at least, and the class's own share of the images drawn, which `share` has as a
        fraction.
        """
        part, whole = share
        mixed = labels[order]
        own = [order[mixed == number] for number in range(classes)]
        return [rows[: max(2, len(rows) * part // whole)] for rows in own]

    def least(self, errors: Tensor) -> Tensor:
        """Which of A strengths has the least error, for each class (C,), from errors (A, C)."""
        return errors.sum(1).argmin().expand(errors.shape[1])

    def thresholds(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """The logit of each class (C,) from which on to say yes, None where the best class is said.

        From logits of left-out images (N, C) and their labels, zeros and ones (N, C).
        """
        return None

    def own_thresholds(self, thresholds: Tensor | None) -> Tensor | None:
        """Those that decide what is said of an image."""
        return None

    def surprise(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """−log p of the right class (N,); None where there is no one right class."""
        return functional.cross_entropy(logits.double(), labels, reduction="none")

    def where_one(self, value: T) -> T | None:
        """The value, None with several labels per image: for what is there of one label alone."""
        return value

    def beside(self, logits: Tensor, texts: Tensor) -> Tensor:
        """Logits (B, C) of all classes, of which a head knows the first: `logits` (B, C_h).

        The texts' logits (B, C) say how likely it is that an image is of these at all.
        """
        trained, rest = texts[:, : logits.shape[1]], texts[:, logits.shape[1] :]
        if rest.shape[1]:
            logits = logits.log_softmax(1) + trained.logsumexp(1, keepdim=True)
        return torch.cat([logits, rest], dim=1)

    def bias(self, of: Callable[[], float]) -> float:
        """What `of` says is to be added to all logits; 0 of a softmax, which cancels it."""
        return 0.0

    def check_loss_for(self, classifier: Any) -> None:
        """Raise a ResiDualError where a loss of such labels does not suit a classifier."""
        if classifier.labelling.multi_label:
            raise ResiDualError(
                "the classifier is for several labels per image (multi_label=True), and "
                "loss='softmax' for one: use Objective(loss='sigmoid'), or a classifier without."
            )

    def numbered(self, given: Any, number: Callable[[Any], int], classes: int) -> Tensor:
        """Labels as somebody gives them -> labels.

        A class's name or number of each image, which `number` maps; with several a list of them for
        each, or zeros and ones (N, C) as a tensor.
        """
        return torch.tensor([number(label) for label in given])

    def of_classes(self, labels: Tensor, inside: Sequence[bool]) -> Tensor:
        """Images (N,) whose labels tell of some classes, of C which are or are not."""
        return torch.tensor(inside)[labels]

    def in_words(self, labels: Sequence[str], probabilities: str) -> str:
        """An image's labels and its classes' probabilities, for people."""
        return probabilities


class HeadsOfManyLabels:
    """With several labels per image each class decides by itself."""

    def image_weights(self, labels: Tensor, weights: Tensor) -> Tensor | None:
        """An image is of no one class."""
        return None

    def leaves_blocks(self, counts: Tensor, small: int) -> bool:
        """There are none."""
        return False

    def may_leave_out(self, counts: Tensor) -> bool:
        """An image has much to say of the classes that it is not of."""
        return True

    def first_rows(
        self, labels: Tensor, order: Tensor, classes: int, share: tuple[int, int]
    ) -> list[Tensor]:
        """Two with the class."""
        return [order[labels[order, number] > 0][:2] for number in range(classes)]

    def least(self, errors: Tensor) -> Tensor:
        """Each class its own."""
        return errors.argmin(0)

    def thresholds(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """Half way between the two images that it parts.

        Of places where half of the images that get the class have it, or more: the best F1 of a
        class that cannot be told gives it to everybody. 0, a probability of one half, without one.
        """
        logits, order = logits.sort(dim=0, descending=True)
        hits = labels.double().gather(0, order)
        said = torch.arange(1, len(logits) + 1, dtype=torch.float64).unsqueeze(1)
        f1 = 2 * hits.cumsum(0) / (said + hits.sum(0))
        below = torch.cat([logits[1:], logits[-1:] - 1])
        # equal logits go together: only the last of them is a place to part
        able = (logits > below) & (2 * hits.cumsum(0) >= said)
        f1 = torch.where(able, f1, torch.full_like(f1, -1))
        best = f1.argmax(0, keepdim=True)
        found = (logits.gather(0, best) + below.gather(0, best)) / 2
        return torch.where(f1.gather(0, best) > 0, found, torch.zeros_like(found)).squeeze(0)

    def own_thresholds(self, thresholds: Tensor | None) -> Tensor | None:
        """All."""
        return thresholds

    def surprise(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """There are many, or none."""
        return None

    def where_one(self, value: T) -> T | None:
        """See `HeadsOfOneLabel`."""
        return None

    def beside(self, logits: Tensor, texts: Tensor) -> Tensor:
        """Each on its own."""
        return torch.cat([logits, texts[:, logits.shape[1] :]], dim=1)

    def bias(self, of: Callable[[], float]) -> float:
        """Sigmoids need one."""
        return of()

    def check_loss_for(self, classifier: Any) -> None:
        """A fit makes it one for several labels."""

    def numbered(self, given: Any, number: Callable[[Any], int], classes: int) -> Tensor:
        """Lists become zeros and ones.

        Raises:
            ResiDualError: a name in place of a list, which would be taken apart into letters.
        """
        if isinstance(given, Tensor) and given.ndim == 2:
            return given.cpu()
        labels = torch.zeros(len(given), classes, dtype=torch.long)
        for row, own in enumerate(given):
            if isinstance(own, str | bytes | Mapping):
                raise ResiDualError(
                    "wanted a list of names for each image, which may have several labels, got "
                    f"{short(own)}: put a name that is alone into a list."
                )
            labels[row, [number(label) for label in own]] = 1
        return labels

    def of_classes(self, labels: Tensor, inside: Sequence[bool]) -> Tensor:
        """All: an image tells of every class that it is none of it."""
        return torch.ones(len(labels), dtype=torch.bool)

    def in_words(self, labels: Sequence[str], probabilities: str) -> str:
        """Its labels first, which may be none."""
        return f"{', '.join(labels) or 'no label'} ({probabilities})"
