"""What a class is: its text, the mean of its images, or a blend of both."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...data.labels import ONE_LABEL, check_same
from ...errors import ResiDualError
from .calibrating import calibrate
from .images import checked
from .left_out import Leaving, leaving_of

SHARES = tuple(step / 20 for step in range(21))
DEFAULT_SHARE = 0.5  # of the means, where one image per class leaves nothing to choose by


@dataclass(frozen=True)
class Blend:
    """Class embeddings `normalize((1 − β) w_text + β w_mean)`."""

    embeddings: Tensor  # of unit length (C, d)
    share: float  # β; 0 is the text alone and 1 the means alone
    # log-loss of left-out images at each of `SHARES`, with the best temperature; empty where
    # nothing was chosen
    losses: Tensor


def blend(
    text: Tensor,
    features: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    share: float | None = None,
    groups: Tensor | None = None,
) -> Blend:
    """Class embeddings from text and images, their share by the log-loss of left-out images.

    An image is told by means without it, with one image of every class left out together where
    classes are small, so that no class is the poorer by it. Cosines get the temperature that suits
    them, whatever β is. The text is (C, d); the share is β, in place of a choice.
    """
    data = checked(features, labels, class_count)
    check_same(ONE_LABEL, data.labelling, "there are no class means of others")
    if text.shape != (class_count, data.features.shape[1]):
        raise ResiDualError(
            f"wanted text embeddings ({class_count}, {data.features.shape[1]}) beside those of the "
            f"images, got {tuple(text.shape)}."
        )
    if share is not None and not 0 <= share <= 1:
        raise ResiDualError(f"wanted a share of the means from 0 to 1, got {share}.")
    rows = functional.normalize(data.features, dim=1)
    sums = data.targets.mT @ rows
    means = functional.normalize(sums, dim=1)
    text = functional.normalize(text.detach().cpu().double(), dim=1)
    losses = torch.zeros(0, dtype=torch.float64)
    if share is None:
        leaving = leaving_of(data.labels, class_count, groups)
        share = DEFAULT_SHARE
        if leaving.known.any():
            losses = _losses(text, rows, sums, data.labels, leaving)
            share = SHARES[int(losses.argmin())]
    mixed = functional.normalize((1 - share) * text + share * means, dim=-1)
    return Blend(mixed, share, losses)


def _losses(text: Tensor, rows: Tensor, sums: Tensor, labels: Tensor, leaving: Leaving) -> Tensor:
    """Left-out log-loss for each of `SHARES`, at its own best temperature."""
    # a blend's cosine from three numbers per image and class: x·t, x·m and t·m
    by_text = rows @ text.mT
    means = functional.normalize(sums, dim=1)
    by_mean = rows @ means.mT
    across = (text * means).sum(1).expand_as(by_text).clone()
    held = torch.ones_like(by_text)  # |m|²: 0 of a class that has no image but those left out
    for part in leaving.parts:
        touched, own = labels[part].unique(return_inverse=True)
        without = functional.normalize(sums[touched].index_add(0, own, rows[part], alpha=-1.0))
        by_mean[part[:, None], touched] = rows[part] @ without.mT
        across[part[:, None], touched] = (without * text[touched]).sum(1).expand(len(part), -1)
        held[part[:, None], touched] = without.square().sum(1).expand(len(part), -1)
    known = leaving.known
    ones = torch.ones(int(known.sum()), dtype=torch.float64)
    found = []
    for share in SHARES:
        rest = 1 - share
        square = rest**2 + share**2 * held + 2 * rest * share * across
        length = square.clamp(min=1e-12).sqrt()
        cosines = (rest * by_text + share * by_mean) / length
        found.append(calibrate(cosines[known], labels[known], ones).loss)
    return torch.tensor(found, dtype=torch.float64)
