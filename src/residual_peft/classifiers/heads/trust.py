"""What left-out predictions tell: how sure they may be, and which labels look wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...data.labels import ONE_LABEL, check_same, labelling_in
from ...errors import ResiDualError
from .left_out import LeftOut
from .minimising import minimise

BINS = 15
FEWEST_IMAGES = 20  # left-out images that a share of wrong labels can be told from
_FIRST_RATE = 0.03
_PRIOR = (2.0, 20.0)  # Beta: a wrong label or two in twenty images, until there is evidence


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """How far the softmax of logits (N, C) is from labels (N,): expected calibration error.

    The gaps of confidence and accuracy, the mean probability of the likeliest class and the share
    told right, in equal bins ((0, 1/b], …], weighted by their images (C. Guo et al., 2017).
    """
    check_same(ONE_LABEL, labelling_in(labels), "how sure a softmax may be is told by one")
    if not len(labels) or bins < 1:
        raise ResiDualError(
            f"wanted one or more images, and one bin or more, got {len(labels)} and {bins}."
        )
    sure, guess = logits.detach().double().softmax(1).max(1)
    index = (sure * bins).ceil().long().sub(1).clamp(0, bins - 1)
    images = index.bincount(minlength=bins)
    right = index.bincount((guess == labels).double(), bins)
    gaps = (right / images - index.bincount(sure, bins) / images).abs().nan_to_num() * images
    return float(gaps.sum() / images.sum())


@dataclass(frozen=True)
class SuspiciousLabels:
    """How likely each training label is wrong, from predictions that did not see it."""

    # probability that the label is wrong (N,); 0 where an image could not be left out
    wrong: Tensor
    likely: Tensor  # the class that it looks like (N,)
    rate: float  # the share of wrong labels that explains the predictions best

    def rows(self, least: float = 0.5) -> list[int]:
        """Images whose label is wrong with this probability or more, the surest first."""
        order = self.wrong.argsort(descending=True, stable=True)
        return [row for row in order.tolist() if float(self.wrong[row]) >= least]


def suspicious_labels(left_out: LeftOut) -> SuspiciousLabels:
    """Which training images look as if their label was wrong; for one label per image.

    Labels are taken to be replaced by any other class with probability ε. With q the softmax of
    τ times the left-out logits, the given label y has probability (1 − ε) q_y + ε (1 − q_y) /
    (C − 1); ε and τ are those of the greatest posterior, so that a τ that was flattened by wrong
    labels is sharpened again. Bayes's rule then gives the probability that a label is wrong. (The
    idea of left-out predictions: C. Northcutt et al., confident learning, 2021.)
    """
    known = left_out.known
    check_same(ONE_LABEL, labelling_in(left_out.labels), "which look wrong is told of one")
    if int(known.sum()) < FEWEST_IMAGES:
        raise ResiDualError(
            f"wanted left-out predictions of {FEWEST_IMAGES} images or more to tell which labels "
            f"look wrong, got {int(known.sum())}."
        )
    logits, labels = left_out.logits.double(), left_out.labels
    rate, temperature = _rate_and_temperature(logits[known], labels[known])
    share = (temperature * logits).softmax(1)
    own = share.gather(1, labels[:, None])[:, 0]
    by_mistake = rate * (1 - own) / (logits.shape[1] - 1)
    wrong = by_mistake / ((1 - rate) * own + by_mistake)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return SuspiciousLabels(torch.where(known, wrong, 0.0), others.argmax(1), rate)


def _rate_and_temperature(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """ε and τ of the greatest posterior, by L-BFGS over (logit ε, log τ)."""
    classes, count = logits.shape[1], len(logits)
    alpha, beta = _PRIOR

    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = point.detach().clone().requires_grad_(True)
            log_rate, log_rest = functional.logsigmoid(at[0]), functional.logsigmoid(-at[0])
            scaled = (at[1].exp() * logits).log_softmax(1)
            own = scaled.gather(1, labels[:, None])[:, 0]
            rest = scaled.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
            mistaken = log_rate + rest - torch.log(torch.tensor(classes - 1.0).double())
            value = -torch.logaddexp(log_rest + own, mistaken).sum()
            value = value - alpha * log_rate - beta * log_rest + 0.5 * at[1].square()
            value = value / count
            (gradient,) = torch.autograd.grad(value, at)
        return value.detach(), gradient

    first = torch.tensor([_FIRST_RATE, 1.0]).double().log()
    found = minimise(function, first, tolerance=1e-9)
    return float(found[0].sigmoid()), float(found[1].exp())
