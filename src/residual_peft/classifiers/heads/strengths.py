"""The strength of a ridge by what it says of images left out, and what stands beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ResiDualError
from .calibrating import Calibration, calibrate, platt
from .finishing import log_losses, text_alone
from .images import Images
from .left_out import Leaving
from .smoother import Smoother

DEFAULT_STRENGTH = 1.0
"""α in mean squared lengths of a row where nothing can be left out, with one image per class."""
DEFAULT_TEMPERATURE = 12.0
"""τ there: what is fitted from two images of each class on is 9 to 14 on handwriting."""
CORRECTING_TEMPERATURE = 8.0
"""τ there where the ridge corrects the text: a good text is not to be shouted down."""
SURE = 0.5
"""Standard errors by which correcting the text has to beat replacing it.

Without, 8 images of each class of handwriting lose a point by a wrong choice; at a half, noisy
digits, letters and shapes lose nothing of their 5 to 10 points.
"""


@dataclass(frozen=True)
class Chosen:
    """The strengths, and the left-out scores there (N, C)."""

    alpha: Tensor  # of each class (C,)
    losses: Tensor  # of the strengths tried (A,) or, with several labels, (A, C)
    scores: Tensor  # left out, without a and τ
    calibration: Calibration  # a and τ
    slopes: Tensor  # of Platt's line of each class with several labels; else ones (C,)
    biases: Tensor  # of the lines; else zeros (C,)
    prior: float = 0.0  # a₀ where the ridge is of what softmax(a₀ z) leaves of the labels, else 0


def beside_text(images: Images, prior: float) -> Tensor:
    """What V is fitted to (N, C): the labels, or what softmax(a₀ z) leaves of them."""
    if prior == 0:
        return images.targets
    assert images.zero_shot is not None
    return images.targets - (prior * images.zero_shot).softmax(1)


@dataclass(frozen=True)
class Choosing:
    """Choices on left-out images, for one decomposition of the features."""

    images: Images  # with their labels
    smoother: Smoother  # of their features
    strengths: Tensor  # to try (A,)
    # whether the ridge is of what the text leaves; None for what is better, and so where nothing
    # can be left out
    residual: bool | None

    def among(self, leaving: Leaving) -> Chosen:
        """The strength, with a and τ, of the least loss on images that are left out so."""
        if self.images.labelling.multi_label:
            return self._several_labels(leaving)
        images = self.images
        prior = 0.0 if self.residual is False else text_alone(images)
        if prior == 0:
            return self._one_label(leaving, 0.0)
        beneath = self._one_label(leaving, prior)
        if self.residual or not leaving.known.any():
            return beneath
        beside = self._one_label(leaving, 0.0)
        gained = self._losses(beside, leaving) - self._losses(beneath, leaving)
        share = images.weights[leaving.known] / images.weights[leaving.known].sum()
        mean = float(share @ gained)
        error = float((share.square() @ (gained - mean).square()).sqrt())
        return beneath if mean > SURE * error else beside

    def _losses(self, chosen: Chosen, leaving: Leaving) -> Tensor:
        """Left-out log-loss of each image whose class is known without it."""
        assert self.images.zero_shot is not None
        numbers = chosen.calibration
        logits = numbers.text_weight * self.images.zero_shot + numbers.temperature * chosen.scores
        return log_losses(logits, self.images)[leaving.known]

    def _one_label(self, leaving: Leaving, prior: float) -> Chosen:
        """One strength for all classes, with a and τ of its left-out predictions."""
        images, smoother, known = self.images, self.smoother, leaving.known
        targets, classes = beside_text(images, prior), images.targets.shape[1]
        ones, zeros = torch.ones(classes).double(), torch.zeros(classes).double()
        if not known.any():
            # of those given the one that is nearest to what does well in general
            apart = (self.strengths / (DEFAULT_STRENGTH * smoother.size)).log().abs()
            alpha = float(self.strengths[apart.argmin()])
            scores = smoother.fitted(targets, alpha)
            # the text is weighed by itself, as it has seen none of the images
            temperature = CORRECTING_TEMPERATURE if prior else DEFAULT_TEMPERATURE
            calibration = Calibration(prior or text_alone(images), temperature, float("nan"))
            return Chosen(
                ones * alpha, torch.zeros(0).double(), scores, calibration, ones, zeros, prior
            )
        weights, labels = images.weights[known], images.labels[known]
        text = None if images.zero_shot is None else images.zero_shot[known]
        best, losses = None, []
        # not by log-loss, with a and τ fitted for each strength: with few images it runs to the
        # strongest (2 of each class of handwriting: .821 right on test images, against .831)
        for alpha, scores in smoother.path(targets, self.strengths, leaving):
            squares = (scores - targets)[known].square().sum(1)
            losses.append(float(weights @ squares / weights.sum()))
            if best is None or losses[-1] < best[0]:
                best = (losses[-1], alpha, scores)
        assert best is not None
        _, alpha, scores = best
        calibration = calibrate(scores[known], labels, weights, text)
        tried = torch.tensor(losses, dtype=torch.float64)
        return Chosen(ones * alpha, tried, scores, calibration, ones, zeros, prior)

    def _several_labels(self, leaving: Leaving) -> Chosen:
        """Each class its own strength and its own line through its left-out scores."""
        if leaving.how == "none":
            raise ResiDualError("wanted at least two images with several labels each, got one.")
        images, targets, losses = self.images, self.images.targets, []
        best = torch.full((targets.shape[1],), torch.inf, dtype=torch.float64)
        chosen, scores = torch.zeros_like(best), torch.zeros_like(targets)
        for alpha, tried in self.smoother.path(targets, self.strengths, leaving):
            loss = (tried - targets).square().mean(0)
            losses.append(loss)
            better = loss < best
            best = torch.where(better, loss, best)
            chosen = torch.where(better, torch.full_like(chosen, alpha), chosen)
            scores = torch.where(better, tried, scores)
        slopes, biases = platt(scores, targets)
        calibration = Calibration(0.0, 1.0, float(best.mean()))
        if images.zero_shot is not None:
            text = images.zero_shot - images.zero_shot.mean(0)
            # every label of every image is a choice between 0 and its logit
            yes = [scores * slopes + biases, text]
            pairs = [torch.stack([torch.zeros_like(t), t], 2).reshape(-1, 2) for t in yes]
            labels = targets.flatten().long()
            calibration = calibrate(pairs[0], labels, torch.ones_like(labels).double(), pairs[1])
            # what was taken off the text goes into the head's own offset
            share = calibration.text_weight / calibration.temperature
            biases = biases - share * images.zero_shot.mean(0)
        return Chosen(chosen, torch.stack(losses), scores, calibration, slopes, biases)
