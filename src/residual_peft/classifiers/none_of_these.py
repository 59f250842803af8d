"""None of these: how unlike all that a class head was fitted on an image is, by its embedding."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResiDualError
from .heads.discriminant import Discriminant, fit_discriminant
from .heads.left_out import FOLDS, stratified_folds

MOST = 10_000  # distances that are kept; of more, as many quantiles
LARGEST = 1e9  # that a saved number may be; its square, summed, still has room in float64
PREFIX = "none_of_these."
LEAST_IMAGES = 20  # fewer cannot tell one image in twenty


@dataclass(frozen=True)
class KnownImages:
    """Distances in the embedding from the nearest class, and those of training images, left out.

    The squared Mahalanobis distance (c − μ_k)ᵀ Σ⁻¹ (c − μ_k) of the image's c = y / ‖y‖, with one
    shrunk covariance of all classes (`heads.discriminant`), as ‖W c − m_k‖². Training images are
    measured by means and covariance without them, in closed form: their distances to classes that
    they are part of are far too small (`method.md`, section 8).
    """

    whitening: Tensor  # W (d, d)
    centres: Tensor  # m_k of the classes (C, d)
    # squared distances of training images to the nearest class by a fit without them, ascending
    # (N,); of more than 10,000, as many quantiles
    left_out: Tensor

    @classmethod
    def of(cls, model: Discriminant, left_out: Tensor) -> "KnownImages":
        """From a fit on the embedding, and the squared distances of images left out (N,)."""
        eye = torch.eye(len(model.mean), dtype=torch.float64)
        precision = model.covariance.solve(eye)
        root = torch.linalg.cholesky((precision + precision.mT) / 2)
        whitening = root.mT / model.scale
        centres = model.centres @ root + whitening @ model.mean
        ascending = left_out.sort().values
        if len(ascending) > MOST:  # rounded down, so that nothing is called known by it
            ascending = ascending[torch.arange(MOST) * len(ascending) // MOST]
        return cls(whitening.float(), centres.float(), ascending.float())

    def distances(self, embedding: Tensor) -> Tensor:
        """Squared distance of each image to the nearest class, (M, d) -> (M,)."""
        rows = embedding.cpu().double() @ self.whitening.double().mT
        return torch.cdist(rows, self.centres.double()).square().amin(1)

    def p_values(self, embedding: Tensor) -> Tensor:
        """(1 + training images at least as far) / (N + 1), (M, d) -> (M,).

        Of images like those that were trained on, at most a share p has a value of p or less
        (Vovk, Gammerman and Shafer, 2005, chapter 2), as near as leaving out comes to held out.
        """
        nearer = torch.searchsorted(self.left_out.double(), self.distances(embedding))
        count = len(self.left_out)
        return (1 + count - nearer).double() / (count + 1)

    def check_share(self, share: float) -> None:
        """Raise a ResiDualError unless a share of false alarms can be told by so many images."""
        if not 0 < share < 1:
            raise ResiDualError(
                f"wanted the share of known images that may be called none of these between 0 and "
                f"1, got {share}."
            )
        if share * (len(self.left_out) + 1) < 1:
            raise ResiDualError(
                f"{len(self.left_out)} images cannot tell {share:.2%} false alarms: wanted a share "
                f"of at least {1 / (len(self.left_out) + 1):.2%}."
            )

    def tensors(self) -> dict[str, Tensor]:
        """What is saved."""
        return {
            PREFIX + "whitening": self.whitening,
            PREFIX + "centres": self.centres,
            PREFIX + "left_out": self.left_out,
        }


def known_images(
    embedding: Tensor, labels: Tensor, class_count: int, *, groups: Tensor | None = None
) -> KnownImages | None:
    """What the images of a fit say of others; None where they are too few or all alike.

    Of embeddings y / ‖y‖ of the unadapted model (N, d) and labels (N,). Images of one number in
    `groups` (N,), such as copies, are left out together: by fifths, as there is no closed form.
    """
    counts = labels.bincount(minlength=class_count)
    if len(labels) < LEAST_IMAGES or int(counts.min()) == 0 or int(counts.max()) < 2:
        return None
    model = fit_discriminant(embedding, labels, class_count).model
    left_out: Tensor | None = _as_of_new(model.squared, labels, counts).amin(1)
    if groups is not None and len(groups.unique()) < len(groups):
        left_out = _by_groups(embedding, labels, groups)
    if left_out is None or not bool(left_out.isfinite().all()) or model.covariance.is_alike:
        return None
    known = KnownImages.of(model, left_out)
    # images all but equal within their classes have no distance that float32 could hold
    sound = all(bool((part.abs() < LARGEST).all()) for part in known.tensors().values())
    return known if sound else None


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


def _by_groups(embedding: Tensor, labels: Tensor, groups: Tensor) -> Tensor | None:
    """Squared distances to the nearest class by fits without the image's fold of groups (N,)."""
    fold = stratified_folds(labels, folds=FOLDS, groups=groups)
    if fold is None:
        return None
    found = torch.empty(len(labels), dtype=torch.float64)
    for number in fold.unique():
        out = fold == number
        classes, kept = labels[~out].unique(return_inverse=True)
        if len(kept) < LEAST_IMAGES // 2 or int(kept.bincount().max()) < 2:
            return None
        model = fit_discriminant(embedding[~out], kept, len(classes)).model
        found[out] = model.distances(embedding[out]).amin(1)
    return found


def known_images_from(
    tensors: Mapping[str, Tensor], width: int, classes: int, where: str
) -> KnownImages | None:
    """What was saved for a head of so many classes on `width` columns; None where nothing was."""
    parts = {
        name.removeprefix(PREFIX): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    if not parts:
        return None
    if set(parts) != {"whitening", "centres", "left_out"}:
        raise ResiDualError(f"{where} holds other tensors than {PREFIX}* has.")
    for name, tensor in parts.items():
        if not bool((tensor.abs() < LARGEST).all()):
            raise ResiDualError(f"{where} holds numbers out of range in {PREFIX}{name}.")
    centres, left_out = parts["centres"], parts["left_out"]
    shaped = centres.ndim == 2 and left_out.ndim == 1 and len(centres) == classes
    if not shaped or parts["whitening"].shape != (width, width) or centres.shape[1] != width:
        raise ResiDualError(
            f"wanted {PREFIX}whitening ({width}, {width}) and centres ({classes}, {width}) "
            f"in {where}, got {tuple(parts['whitening'].shape)} and {tuple(centres.shape)}."
        )
    if not len(left_out) or bool((left_out < 0).any() | (left_out.diff() < 0).any()):
        raise ResiDualError(f"wanted ascending distances in {where}, {PREFIX}left_out, got others.")
    return KnownImages(**{name: tensor.clone() for name, tensor in parts.items()})
