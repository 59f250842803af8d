"""How far images lie from the nearest class, by fits without them: what tells strangers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .discriminant import Covariance, Discriminant, fit_discriminant, left_out_squared
from .left_out import FOLDS, stratified_folds

LEAST_IMAGES = 20  # fewer cannot tell one image in twenty
EXPONENTS = (1.0, 0.5, 0.25)  # of the distance in the embedding, which are tried
CLASS_FOLDS = 10  # parts of the classes, each of strangers once
# of the mean variance, added to that of every coordinate. `smoother.scales_of` floors lower, at
# rounding noise: a fit may give what hardly varies no weight, a distance cannot
FLOOR = 1e-3


@dataclass(frozen=True)
class InCoordinates:
    """Classes in coordinates, each over its standard deviation among all training images."""

    scale: Tensor  # σ (K,)
    centres: Tensor  # of the classes, over σ (C, K)

    def distances(self, coordinates: Tensor) -> Tensor:
        """Squared distance of each image to the nearest class, (M, K) -> (M,)."""
        rows = coordinates.cpu().double() / self.scale.double()
        return torch.cdist(rows, self.centres.double()).square().amin(1)


@dataclass(frozen=True)
class Images:
    """What is known of the images of a fit."""

    embedding: Tensor  # (N, d)
    coordinates: Tensor | None  # (N, K)
    labels: Tensor  # (N,)
    groups: Tensor  # images of one number, such as copies, are left out together (N,)

    def rows(self, which: Tensor) -> "Images":
        """Those of a mask (N,)."""
        coordinates = None if self.coordinates is None else self.coordinates[which]
        return Images(self.embedding[which], coordinates, self.labels[which], self.groups[which])


def measures_of(images: Images) -> tuple[Discriminant, InCoordinates | None, Tensor | None]:
    """One or both measures, and distances of images left out (N, 1 or 2); None with few groups."""
    labels, counts, beside = images.labels, images.labels.bincount(), None
    model = fit_discriminant(images.embedding, labels, len(counts)).model
    squared = [model.squared]
    if images.coordinates is not None:
        rows = images.coordinates.cpu().double()
        variance = rows.var(0)
        scale = (variance + FLOOR * variance.mean()).sqrt().clamp(min=1e-12)
        rows = rows / scale
        centres = torch.zeros(len(counts), rows.shape[1]).double()
        centres = centres.index_add_(0, labels, rows) / counts[:, None]
        beside = InCoordinates(scale.float(), centres.float())
        # about their mean, which changes no distance and leaves less to rounding
        data = rows - rows.mean(0), centres - rows.mean(0), labels, counts.double()
        squared.append(left_out_squared(*data, Covariance.alike(1.0, rows.shape[1]), 1.0))
    if len(images.groups.unique()) < len(labels):
        return model, beside, _left_out_by_groups(images)
    return model, beside, torch.stack([_as_of_new(part, labels, counts) for part in squared], 1)


def combined(distances: Tensor, exponent: float) -> Tensor:
    """Those in the embedding and maybe in coordinates (M, 1 or 2) as one (M,)."""
    return distances.pow(torch.tensor([exponent, 1 - exponent])[: distances.shape[1]]).prod(1)


def best_exponent(images: Images) -> float:
    """Which of `EXPONENTS` tells images of classes that are left out best; the first where none is.

    Of two classes or more; a group counts as one image.
    """
    _, group, sizes = images.groups.unique(return_inverse=True, return_counts=True)
    weights, areas = 1 / sizes[group].double(), dict.fromkeys(EXPONENTS, 0.0)
    part = images.labels % CLASS_FOLDS
    for number in part.unique():
        out = part == number
        found = _without(images, out)
        if found is None:
            return EXPONENTS[0]
        for exponent in EXPONENTS:
            near, far = (combined(distances, exponent) for distances in found)
            farther = weights[out] @ (far[:, None] > near).double() @ weights[~out]
            areas[exponent] += float(farther / (weights[out].sum() * weights[~out].sum()))
    return max(EXPONENTS, key=lambda exponent: areas[exponent])


def _without(images: Images, out: Tensor) -> tuple[Tensor, Tensor] | None:
    """Distances by a fit without some images, of the others, left out, and theirs; None if few."""
    classes, kept = images.labels[~out].unique(return_inverse=True)
    if len(kept) < LEAST_IMAGES // 2 or len(classes) < 2 or int(kept.bincount().max()) < 2:
        return None
    model, beside, left_out = measures_of(replace(images.rows(~out), labels=kept))
    others = images.rows(out)
    found = [model.distances(others.embedding).amin(1)]
    if beside is not None and others.coordinates is not None:
        found.append(beside.distances(others.coordinates))
    return None if left_out is None else (left_out, torch.stack(found, 1))


def _as_of_new(squared: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Of left-out squared distances (N, C) the least (N,), to means of one image more.

    Of n images of a class one that is left out lies Σ (1 + 1 / (n − 1)) about the mean of the
    others, a new one Σ (1 + 1 / n) about the mean of all: a share of 1 − 1 / n² of it. With few
    images of each class that is not little: 6 % with four.
    """
    size = counts[labels].double()
    share = torch.where(size > 1, 1 - 1 / size.square(), 1.0)  # with one, it is infinitely far
    found = squared.clone()
    found[torch.arange(len(labels)), labels] *= share
    return found.amin(1)


def _left_out_by_groups(images: Images) -> Tensor | None:
    """Distances by fits without the image's fold of groups (N, 1 or 2)."""
    fold = stratified_folds(images.labels, folds=FOLDS, groups=images.groups)
    if fold is None:
        return None
    distances = torch.empty(len(fold), 1 if images.coordinates is None else 2).double()
    singly = replace(images, groups=torch.arange(len(fold)))
    for number in fold.unique():
        found = _without(singly, fold == number)
        if found is None:
            return None
        distances[fold == number] = found[1]
    return distances
