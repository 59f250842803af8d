"""Nearest class mean and nearest neighbours, by cosines: nothing is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .finishing import finish, mean_loss
from .left_out import leaving_of
from .preparing import UnitRows
from .rival import LinearScorer, Rival, Shots, on_unit_rows, rival

NEIGHBOURS = (1, 2, 3, 5, 10, 20, 50)
NEIGHBOUR_TEMPERATURE = 0.07
"""Of the votes exp(cosine / T): M. Caron et al., 2021, and Z. Wu et al., 2018, before them."""
DEFAULT_NEIGHBOURS = 1
DEFAULT_TEMPERATURE = 10.0
"""Of cosines to single images: fitted to 5 to 17 with two images of each class of handwriting."""


@on_unit_rows
def fit_means(shots: Shots) -> Rival:
    """Nearest class mean: cosines to the mean of each class's unit-norm rows."""
    data, unit = shots.data, shots.unit
    sums = data.targets.mT @ unit
    leaving = leaving_of(data.labels, data.targets.shape[1], shots.groups)
    means = functional.normalize(sums, dim=1)
    left = unit @ means.mT
    for part in leaving.parts:
        # only the classes that lose an image have another mean
        touched, own = data.labels[part].unique(return_inverse=True)
        without = sums[touched].index_add(0, own, unit[part], alpha=-1.0)
        cosines = unit[part] @ functional.normalize(without, dim=1).mT
        left[part[:, None], touched] = cosines
    return rival(
        LinearScorer(shots.rows, means.mT),
        left,
        data,
        leaving.how,
        leaving.known,
        with_text=True,
        temperature=DEFAULT_TEMPERATURE,
    )


@dataclass(frozen=True)
class Neighbours:
    """The log of the classes' shares among the k nearest images, by cosine.

    A neighbour at cosine s votes with exp((s − s₁) / 0.07), s₁ the nearest's; one vote of the
    nearest's weight is spread over all classes, so that every share has a logarithm.
    """

    rows: UnitRows  # how features are prepared
    images: Tensor  # unit-norm rows (N, K)
    targets: Tensor  # of those images, zeros and ones (N, C)
    count: int  # k

    @property
    def parameter_count(self) -> int:
        """N K: all images are kept."""
        return self.images.numel()

    def logits(self, features: Tensor, zero_shot: Tensor | None = None) -> Tensor:
        """Logarithms of shares (M, C)."""
        return log_votes(self.rows(features) @ self.images.mT, self.targets, self.count)


def log_votes(cosines: Tensor, targets: Tensor, count: int) -> Tensor:
    """Logarithms of the classes' shares (M, C), from cosines (M, N); -inf is an image left out."""
    nearest, index = cosines.topk(min(count, cosines.shape[1]), dim=1)
    votes = ((nearest - nearest[:, :1]) / NEIGHBOUR_TEMPERATURE).exp()
    votes = torch.where(torch.isfinite(votes), votes, 0.0)
    shares = torch.einsum("mk,mkc->mc", votes, targets[index])
    return ((shares + 1 / targets.shape[1]) / (votes.sum(1, keepdim=True) + 1)).log()


@on_unit_rows
def fit_neighbours(shots: Shots, *, count: int | None = None) -> Rival:
    """k nearest neighbours; k is `count`, or of `NEIGHBOURS` by the log-loss of left-out images."""
    data, unit = shots.data, shots.unit
    leaving = leaving_of(data.labels, data.targets.shape[1], shots.groups)
    cosines = unit @ unit.mT
    if leaving.parts:
        cosines[leaving.numbers[:, None] == leaving.numbers] = -torch.inf
    tried = [count] if count else [k for k in NEIGHBOURS if k < len(unit)] or [DEFAULT_NEIGHBOURS]
    scores = {k: log_votes(cosines, data.targets, k) for k in tried}
    best = tried[0]  # where nothing can be told
    if leaving.known.any():
        finals = {k: finish(s, data, "one", leaving.known)[2].logits for k, s in scores.items()}
        losses = {k: mean_loss(final, data, leaving.known) for k, final in finals.items()}
        best = min(losses, key=lambda k: losses[k])
    left = scores[best]
    scorer = Neighbours(shots.rows, unit, data.targets, best)
    return rival(scorer, left, data, leaving.how, leaving.known, with_text=True, chosen={"k": best})
