"""How far images lie from the nearest class, by fits without them: what tells strangers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .discriminant import Discriminant, fit_discriminant
from .left_out import FOLDS, stratified_folds

LEAST_IMAGES = 20  # fewer cannot tell one image in twenty
SHARES = (1.0, 0.5, 0.25)  # of the embedding in the distance, which are tried
CLASS_FOLDS = 10  # parts of the classes, each of strangers once
FLOOR = 1e-3  # of the mean variance, added to that of every coordinate


@dataclass(frozen=True)
class InCoordinates:
    """Classes in coordinates, each over its standard deviation among all training images."""

    scale: Tensor  # σ (K,)
    centres: Tensor  # of the classes, over σ (C, K)
    share: Tensor  # a of the embedding in `KnownImages.distances` ()

    def distances(self, coordinates: Tensor) -> Tensor:
        """Squared distance of each image to the nearest class, (M, K) -> (M,)."""
        rows = coordinates.cpu().double() / self.scale.double()
        return torch.cdist(rows, self.centres.double()).square().amin(1)


def measures_of(
    embedding: Tensor, coordinates: Tensor | None, labels: Tensor
) -> tuple[Discriminant, InCoordinates | None, Tensor]:
    """One or both measures of images (N, d), (N, K), and their distances, left out (N, 1 or 2)."""
    counts = labels.bincount()
    model = fit_discriminant(embedding, labels, len(counts)).model
    left_out = _as_of_new(model.squared, labels, counts).amin(1)
    if coordinates is None:
        return model, None, left_out[:, None]
    rows = coordinates.cpu().double()
    variance = rows.var(0)
    scale = (variance + FLOOR * variance.mean()).sqrt().clamp(min=1e-12)
    rows = rows / scale
    centres = torch.zeros(len(counts), rows.shape[1]).double()
    centres = centres.index_add_(0, labels, rows) / counts[:, None]
    squared = torch.cdist(rows, centres).square()
    size, own = counts[labels].double(), (torch.arange(len(rows)), labels)
    # about the mean of the others, infinitely far where there are none
    squared[own] = torch.where(size > 1, squared[own] * (size / (size - 1)).square(), torch.inf)
    beside = InCoordinates(scale.float(), centres.float(), torch.tensor(1.0))
    apart = _as_of_new(squared, labels, counts).amin(1)
    return model, beside, torch.stack([left_out, apart], 1)


def mixed(distances: Tensor, share: float) -> Tensor:
    """Those in the embedding and maybe in coordinates (M, 1 or 2) as one (M,)."""
    return distances.pow(torch.tensor([share, 1 - share])[: distances.shape[1]]).prod(1)


def best_share(embedding: Tensor, coordinates: Tensor | None, labels: Tensor) -> float:
    """Which of `SHARES` tells images of classes that are left out best; the first where none is.

    Of embeddings (N, d), coordinates (N, K) and labels (N,) of at least two classes.
    """
    part, areas = labels % CLASS_FOLDS, dict.fromkeys(SHARES, 0.0)
    for number in part.unique():
        found = _without(embedding, coordinates, labels, part == number)
        if found is None:
            return SHARES[0]
        for share in SHARES:
            near, far = (mixed(distances, share) for distances in found)
            areas[share] += float((far[:, None] > near).double().mean())
    return max(SHARES, key=lambda share: areas[share])


def _without(
    embedding: Tensor, coordinates: Tensor | None, labels: Tensor, out: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Distances by a fit without some images, of the others, left out, and theirs; None if few."""
    classes, kept = labels[~out].unique(return_inverse=True)
    if len(kept) < LEAST_IMAGES // 2 or len(classes) < 2 or int(kept.bincount().max()) < 2:
        return None
    model, beside, left_out = measures_of(
        embedding[~out], None if coordinates is None else coordinates[~out], kept
    )
    found = [model.distances(embedding[out]).amin(1)]
    if beside is not None and coordinates is not None:
        found.append(beside.distances(coordinates[out]))
    return left_out, torch.stack(found, 1)


def _as_of_new(squared: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Left-out squared distances (N, C) as those of new images, to means of one image more.

    Of n images of a class one that is left out lies Σ (1 + 1 / (n − 1)) about the mean of the
    others, a new one Σ (1 + 1 / n) about the mean of all: a share of 1 − 1 / n² of it. With few
    images of each class that is not little: 6 % with four.
    """
    size = counts[labels].double()
    share = torch.where(size > 1, 1 - 1 / size.square(), 1.0)  # with one, it is infinitely far
    found = squared.clone()
    found[torch.arange(len(labels)), labels] *= share
    return found


def left_out_by_groups(
    embedding: Tensor, coordinates: Tensor | None, labels: Tensor, groups: Tensor
) -> Tensor | None:
    """Distances by fits without the image's fold of groups (N, 1 or 2)."""
    fold = stratified_folds(labels, folds=FOLDS, groups=groups)
    if fold is None:
        return None
    distances = torch.empty(len(labels), 1 + (coordinates is not None), dtype=torch.float64)
    for number in fold.unique():
        found = _without(embedding, coordinates, labels, fold == number)
        if found is None:
            return None
        distances[fold == number] = found[1]
    return distances
