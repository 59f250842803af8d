"""None of these: how unlike all that a class head was fitted on an image is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ResiDualError
from .heads import strangers
from .heads.discriminant import Discriminant
from .heads.strangers import InCoordinates, combined

MOST = 10_000  # distances that are kept; of more, as many quantiles
LARGEST = 1e9  # that a saved number may be; its square, summed, still has room in float64
PREFIX = "none_of_these."
EXPONENT = "coordinates.share"  # as files call it, which have it where they have coordinates
# images: of fewer the coordinates tell strangers, too, and the ranks of distances are too coarse
FEW = 200


@dataclass(frozen=True)
class KnownImages:
    """Distances from the nearest class, and those of training images, left out.

    In the embedding it is the squared Mahalanobis distance (c − μ_k)ᵀ Σ⁻¹ (c − μ_k) of the image's
    c = y / ‖y‖, with one shrunk covariance of all classes (`heads.discriminant`), as ‖W c − m_k‖².
    With fewer than 200 images Σ is poorly known, and that of standardised coordinates, if the class
    head reads them, may go in: d = d_embedding^a · d_coordinates^(1 − a). Training images are
    measured by means and covariance without them, in closed form: their distances to classes that
    they are part of are far too small (`method.md`, section 8).
    """

    whitening: Tensor  # W (d, d)
    centres: Tensor  # m_k of the classes (C, d)
    # distances of training images to the nearest class by a fit without them, ascending (N,); of
    # more than 10,000, as many quantiles
    left_out: Tensor
    coordinates: InCoordinates | None = None
    exponent: float = 1.0  # a; 1 without coordinates

    @classmethod
    def of(cls, model: Discriminant, left_out: Tensor) -> "KnownImages":
        """From a fit on the embedding, and the distances of images left out (N,)."""
        precision = model.covariance.solve(torch.eye(len(model.mean), dtype=torch.float64))
        root = torch.linalg.cholesky((precision + precision.mT) / 2)
        whitening = root.mT / model.scale
        centres = model.centres @ root + whitening @ model.mean
        ascending = left_out.sort().values
        if len(ascending) > MOST:  # rounded down, so that nothing is called known by it
            ascending = ascending[torch.arange(MOST) * len(ascending) // MOST]
        return cls(whitening.float(), centres.float(), ascending.float())

    def distances(self, embedding: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Distance of each image to the nearest class, (M, d) -> (M,).

        Coordinates (M, K) are needed where `coordinates` is not None, and else not looked at.
        """
        rows = embedding.cpu().double() @ self.whitening.double().mT
        squared = torch.cdist(rows, self.centres.double()).square().amin(1)
        if self.coordinates is None:
            return squared
        assert coordinates is not None
        both = torch.stack([squared, self.coordinates.distances(coordinates)], 1)
        return combined(both, self.exponent)

    def p_values(self, embedding: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """The share of images of the classes that lie as far, (M, d) -> (M,); else as `distances`.

        (1 + training images at least as far) / (N + 1): of images like those that were trained on,
        at most a share p has a value of p or less (Vovk, Gammerman and Shafer, 2005, chapter 2), as
        near as leaving out comes to held out. Of fewer than 200 that is a rank or two, so that it
        is the tail of Student's t instead, the cube root of such a distance being all but normal
        (E. B. Wilson and M. M. Hilferty, 1931).
        """
        distances, count = self.distances(embedding, coordinates), len(self.left_out)
        if count >= FEW:
            nearer = torch.searchsorted(self.left_out.double(), distances)
            return (1 + count - nearer).double() / (count + 1)
        roots = self.left_out.double().pow(1 / 3)
        spread = roots.std().clamp(min=1e-12) * (1 + 1 / count) ** 0.5
        t = (distances.pow(1 / 3) - roots.mean()) / spread
        # Abramowitz and Stegun, 26.7.8; within .002 of the tail. scipy has it whole, but is of the
        # extra [train], and whoever loads an adapter to predict may be without
        degrees = count - 1
        normal = t * (1 - 1 / (4 * degrees)) / (1 + t.square() / (2 * degrees)).sqrt()
        return torch.special.ndtr(-normal)

    def check_share(self, share: float) -> None:
        """Raise a ResiDualError unless a share of false alarms can be told by so many images.

        Below 200 the tail gives smaller values, too, which nothing has shown to be right.
        """
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
        found = {name: getattr(self, name) for name in ("whitening", "centres", "left_out")}
        if self.coordinates is not None:
            found |= {f"coordinates.{name}": t for name, t in vars(self.coordinates).items()}
            found[EXPONENT] = torch.tensor(self.exponent)
        return {PREFIX + name: tensor for name, tensor in found.items()}


def known_images(
    embedding: Tensor,
    labels: Tensor,
    class_count: int,
    *,
    coordinates: Tensor | None = None,
    groups: Tensor | None = None,
) -> KnownImages | None:
    """What the images of a fit say of others; None where they are too few or all alike.

    Of embeddings y / ‖y‖ of the unadapted model (N, d) and labels (N,). Images of one number in
    `groups` (N,), such as copies, are left out together: by fifths, as there is no closed form.

    Coordinates (N, K) of fewer than 200 images go into the distance as far as they tell classes
    from each other that were left out: each class, of more than ten a tenth of them, is measured by
    a fit without it as if it were a stranger, and the exponent is taken with which these distances
    are largest beside those of left-out images (area under the ROC curve, a group as one image).
    """
    counts = labels.bincount(minlength=class_count)
    if len(labels) < strangers.LEAST_IMAGES or int(counts.min()) == 0 or int(counts.max()) < 2:
        return None
    groups = torch.arange(len(labels)) if groups is None else groups
    images, exponent = strangers.Images(embedding, coordinates, labels, groups), 1.0
    # a class of one image, copied or not, would have its coordinates in a file that may be pushed
    several = int(torch.stack([labels, groups]).unique(dim=1)[0].bincount().min()) > 1
    if coordinates is not None and len(labels) < FEW and several:
        exponent = strangers.best_exponent(images)
    if exponent == 1:
        images = replace(images, coordinates=None)
    model, beside, left_out = strangers.measures_of(images)
    found = None if left_out is None else combined(left_out, exponent)
    if found is None or not bool(found.isfinite().all()) or model.covariance.is_alike:
        return None
    known = replace(KnownImages.of(model, found), coordinates=beside, exponent=exponent)
    # images all but equal within their classes have no distance that float32 could hold
    if all(bool((part.abs() < LARGEST).all()) for part in known.tensors().values()):
        return known
    # nor have coordinates that are the same for all images, or huge
    return None if beside is None else known_images(embedding, labels, class_count, groups=groups)


def known_images_from(
    tensors: Mapping[str, Tensor], width: int, columns: int | None, classes: int, where: str
) -> KnownImages | None:
    """What was saved for a class head of so many classes; None where nothing was.

    Of embeddings (M, `width`), and of coordinates (M, `columns`); None where the head reads none.

    Raises:
        ResiDualError: other tensors, shapes or numbers than `KnownImages.tensors` gives.
    """
    parts = {
        name.removeprefix(PREFIX): tensor.float().clone()
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    if not parts:
        return None
    wanted: dict[str, tuple[int, ...]] = {"whitening": (width, width), "centres": (classes, width)}
    if EXPONENT in parts:
        if columns is None:
            raise ResiDualError(
                f"{where} holds known images in coordinates, and reads the embedding alone: give "
                "known_images no coordinates."
            )
        own = {"coordinates.scale": (columns,), "coordinates.centres": (classes, columns)}
        wanted |= own | {EXPONENT: ()}
    if set(parts) != {*wanted, "left_out"}:
        raise ResiDualError(f"{where} holds other tensors than {PREFIX}* has.")
    for name, tensor in parts.items():
        if not bool((tensor.abs() < LARGEST).all()):
            raise ResiDualError(f"{where} holds numbers out of range in {PREFIX}{name}.")
        if name in wanted and tensor.shape != wanted[name]:
            raise ResiDualError(
                f"wanted {PREFIX}{name} {wanted[name]} in {where}, got {tuple(tensor.shape)}."
            )
    left_out = parts["left_out"]
    # one alone would have no spread
    ascends = left_out.ndim == 1 and len(left_out) > 1 and bool((left_out.diff() >= 0).all())
    if not ascends or float(left_out[0]) < 0:
        raise ResiDualError(
            f"wanted two or more ascending distances in {where}, {PREFIX}left_out, got others."
        )
    beside, exponent = None, 1.0
    if EXPONENT in parts:
        beside = InCoordinates(parts["coordinates.scale"], parts["coordinates.centres"])
        exponent = float(parts[EXPONENT])
        if float(beside.scale.min()) <= 0 or not 0 <= exponent <= 1:
            raise ResiDualError(
                f"wanted scales above 0 and a share from 0 to 1 in {where}, {PREFIX}coordinates.*."
            )
    return KnownImages(parts["whitening"], parts["centres"], left_out, beside, exponent)
