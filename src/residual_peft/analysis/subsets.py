"""Which images are right when only some of the units are summed.

Class scores are sums over units, and normalising y' divides all scores of an image by one positive
number, which moves no argmax: accuracies of any subset S of U units come from the scores alone,

    zero ablation   score_c = Σ_{u ∈ S} x_u · w_c            (+ rest · w_c if others="keep")
    mean ablation   score_c = Σ_{u ∈ S} x_u · w_c + Σ_{u ∉ S} x̄_u · w_c   (+ rest, or its mean)

with x̄ means over the *reference* images (those that the units were chosen on), never over those
that are scored, and `rest` all that none of the U units wrote: embed, MLPs and Pβ, where the units
are heads. Ablations are of direct contributions: deeper layers have read the units all the same.

Images go in blocks, so that scores (b, U, C) fit in memory whatever N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..data.labels import ONE_LABEL
from ..data.metrics import accuracy_interval
from ..errors import ResiDualError
from .contributions import Contributions

Ablation = Literal["zero", "mean"]
Others = Literal["ablate", "keep"]

# numbers held at once: 256 MB in float32
_BLOCK = 2**26


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of b images."""

    rows: slice  # a slice of the images
    scores: Tensor  # (b, U, C) what each unit adds to each class
    rest: Tensor  # (b, C) what is in none of the units
    labels: Tensor  # (b,)


def score_blocks(
    contributions: Contributions, class_embeddings: Tensor, block: int | None = None, wide: int = 0
) -> Iterator[ScoreBlock]:
    """Walk over the class scores of labelled images, so many at a time.

    `block` is None for as many as fit in 256 MB; `wide` are further rows of C numbers per image
    that the caller makes of them.

    Raises:
        ResiDualError: no labels, labels outside the classes, embeddings of another width, or a
            block of no images.
    """
    check_classes(contributions, class_embeddings)
    weights, labels = class_embeddings.detach().cpu().float(), contributions.labels
    if labels is None:
        raise ResiDualError(
            "wanted labelled images to count right answers on, got contributions without labels; "
            "collect them from batches that hold `labels`."
        )
    ONE_LABEL.check(labels, len(weights))
    if block is not None and block < 1:
        raise ResiDualError(f"wanted blocks of at least one image, got block={block}.")
    size = block or max(1, _BLOCK // ((len(contributions.units) + wide) * len(weights)))
    for start in range(0, len(contributions), size):
        rows = slice(start, min(start + size, len(contributions)))
        part = contributions.rows(torch.arange(rows.start, rows.stop))
        scores = part.scores(weights)
        rest = part.readout.float() @ weights.T - scores.sum(1)
        yield ScoreBlock(rows, scores, rest, labels[rows])


class Stand:
    """What stands in an ablated unit's place, as class scores.

    Means are of the units of `contributions` over the images of `reference`.

    Raises:
        ResiDualError: unknown options, or mean ablation without a reference that has the units.
    """

    def __init__(
        self,
        contributions: Contributions,
        class_embeddings: Tensor,
        ablation: Ablation = "zero",
        others: Others = "ablate",
        reference: Contributions | None = None,
    ) -> None:
        if ablation not in ("zero", "mean") or others not in ("ablate", "keep"):
            raise ResiDualError(
                "wanted ablation='zero' or 'mean' and others='ablate' or 'keep', got "
                f"ablation={ablation!r} and others={others!r}."
            )
        check_classes(contributions, class_embeddings)
        weights = class_embeddings.detach().cpu().double()
        units = weights.new_zeros(len(contributions.units), len(weights))
        rest = units.new_zeros(len(weights))
        if ablation == "mean":
            if reference is None:
                raise ResiDualError(
                    "mean ablation needs reference=, contributions to the images whose means stand "
                    "in for what is ablated: the validation images, not those that are scored."
                )
            # not `part.mean`: of some `rows` that is the mean of all images
            means = torch.stack(
                [
                    part.mean + part.coordinates.double().mean(0) @ part.components
                    for part in (reference[unit] for unit in contributions.units)
                ]
            )
            units = means @ weights.T
            rest = reference.readout.double().mean(0) @ weights.T - units.sum(0)
        # (U, C) per unit: zeros, or the score of its mean over the reference images
        self.units = units.float()
        # (C,) the same of what is in no unit; None where that is kept as it is
        self.rest = None if others == "keep" else rest.float()


@torch.no_grad()
def correct_with(
    contributions: Contributions,
    class_embeddings: Tensor,
    kept: Tensor,
    stand: Stand,
    block: int | None = None,
) -> Tensor:
    """Which images are right with each of K subsets of the units, (K, N) bool.

    Subsets `kept` are (K, U) bool, in the order of `contributions.units`; `stand` is of the same.

    Raises:
        ResiDualError: as `score_blocks`.
    """
    inside = kept.float()
    fixed = (1 - inside) @ stand.units  # (K, C)
    if stand.rest is not None:
        fixed = fixed + stand.rest
    found = torch.empty(len(kept), len(contributions), dtype=torch.bool)
    for part in score_blocks(contributions, class_embeddings, block, wide=len(kept)):
        total = inside @ part.scores + fixed  # (b, K, C)
        if stand.rest is None:
            total += part.rest[:, None]
        found[:, part.rows] = (total.argmax(-1) == part.labels[:, None]).T
    return found


def correct_whole(
    contributions: Contributions, class_embeddings: Tensor, block: int | None = None
) -> Tensor:
    """Which images are right with nothing ablated, (N,) bool."""
    everything = torch.ones(1, len(contributions.units), dtype=torch.bool)
    stand = Stand(contributions, class_embeddings, others="keep")
    return correct_with(contributions, class_embeddings, everything, stand, block)[0]


def accuracy_of(right: Tensor) -> tuple[float, float, float]:
    """The share of images that are right, (N,) bool, and the ends of Wilson's 95 % interval."""
    correct, images = int(right.sum()), right.numel()
    return correct / images, *accuracy_interval(correct, images)


def check_classes(contributions: Contributions, class_embeddings: Tensor) -> None:
    """Raise a ResiDualError unless the class embeddings are (C, d) for these readouts."""
    if class_embeddings.ndim != 2 or class_embeddings.shape[1] != contributions.width:
        raise ResiDualError(
            f"wanted class embeddings (C, {contributions.width}), of the readout's width, got "
            f"{tuple(class_embeddings.shape)}."
        )
