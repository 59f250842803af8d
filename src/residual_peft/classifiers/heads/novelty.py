"""None of these: images too far from every class, by distances as left-out images have them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ResiDualError
from .conformal import upper_quantile
from .discriminant import Discriminant, Shrinkage, fit_discriminant


@dataclass(frozen=True)
class Novelty:
    """The Mahalanobis distance to the nearest class, and how far training images are left out."""

    model: Discriminant  # class means and the covariance that they share
    # each training image's squared distance to the nearest class, by a fit without it (N,)
    left_out: Tensor
    alarm: float  # the share of images of the known classes that may be refused
    threshold: float  # images beyond this squared distance are none of the classes

    def distances(self, features: Tensor) -> Tensor:
        """Squared distance of each image to the nearest class, (M, K) -> (M,)."""
        return self.model.distances(features).amin(1)

    def refused(self, features: Tensor) -> Tensor:
        """Which images are none of the classes, (M, K) -> bool (M,)."""
        return self.distances(features) > self.threshold

    def p_values(self, features: Tensor) -> Tensor:
        """(1 + training images at least as far, left out) / (N + 1), (M, K) -> (M,).

        Small where an image is unlike all that was trained on; at most `alarm` where it is refused.
        """
        ordered = self.left_out.sort().values
        nearer = torch.searchsorted(ordered, self.distances(features))
        return (1 + len(ordered) - nearer).double() / (len(ordered) + 1)


def fit_novelty(
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    alarm: float = 0.05,
    shrinkage: Shrinkage = "oas",
    power: float = 0.5,
) -> Novelty:
    """Learn how far from every class an image may be, from the training images alone.

    Distances of training images to classes that they are part of are far too small (`method.md`,
    section 8), so that each is measured by the means and the covariance without it, in closed form.

    Args:
        features: (N, K).
        labels: (N,).
        class_count: C.
        alarm: share of false alarms on new images of the known classes.
        shrinkage: of the covariance.
        power: p of the scales. 1 refuses more letters among handwritten digits (.83 of them for .80
            at 8 images per class), but raised 9 % false alarms on other images with 4.

    Raises:
        ResiDualError: as `fit_discriminant`; an alarm outside (0, 1), or below 1 / (N + 1), which
            so few images cannot tell.
    """
    if not 0 < alarm < 1:
        raise ResiDualError(f"wanted a share of false alarms between 0 and 1, got {alarm}.")
    fit = fit_discriminant(features, labels, class_count, shrinkage=shrinkage, power=power)
    nearest = fit.model.squared.amin(1)
    threshold = upper_quantile(nearest, 1 - alarm)
    if threshold == float("inf"):
        raise ResiDualError(
            f"wanted at least {int(1 / alarm)} images to refuse all but {alarm:.1%} of images like "
            f"them, got {len(nearest)}: give more images, or allow more false alarms."
        )
    return Novelty(fit.model, nearest, alarm, threshold)
