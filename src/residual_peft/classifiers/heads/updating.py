"""A ridge head from its sums, with more images or fewer: no old image is seen again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.labels import labelling_in
from ...errors import ResiDualError
from .head import ClassHead
from .images import checked_batch
from .statistics import HeadStatistics

_OWN = ("alpha", "scale", "slopes", "biases", "class_weights")


@dataclass(frozen=True)
class RidgeSettings:
    """What a fit of a ridge chose, and an update keeps."""

    alpha: Tensor  # the strength of each class (C,)
    scale: Tensor  # what each centred feature is divided by (K,), in float64
    # with several labels per image, of the line through each class's scores; else 1 (C,)
    slopes: Tensor
    biases: Tensor  # of that line; else 0 (C,)
    class_weights: Tensor  # how much an image of each class counts (C,); 1 without

    def __post_init__(self) -> None:
        count = self.alpha.numel()
        lengths = {name: getattr(self, name).shape for name in _OWN if name != "scale"}
        if any(shape != (count,) for shape in lengths.values()) or self.scale.ndim != 1:
            raise ResiDualError(
                "wanted the strength, slope, bias and weight of each class of a ridge, got "
                f"{', '.join(f'{name} {tuple(shape)}' for name, shape in lengths.items())}."
            )
        finite = all(torch.isfinite(getattr(self, name)).all() for name in _OWN)
        above = (self.alpha > 0).all() and (self.scale > 0).all() and (self.class_weights > 0).all()
        if not finite or not above:
            raise ResiDualError("wanted finite numbers above 0 as a ridge's settings, got others.")

    @classmethod
    def of(cls, alpha: Tensor, scale: Tensor) -> "RidgeSettings":
        """Of one label per image, all of weight 1: without lines through the scores."""
        alpha = torch.as_tensor(alpha, dtype=torch.float64)
        ones = torch.ones_like(alpha)
        return cls(alpha, scale.double(), ones, torch.zeros_like(alpha), ones)


@dataclass
class RidgeSums:
    """The sums of a ridge's images and its settings: all that the head is made of.

    Every change gives the head that a fit from scratch on the same scales, strengths and class
    weights would give, to rounding.
    """

    statistics: HeadStatistics  # of all images, an image of class k with weight `class_weights[k]`
    settings: RidgeSettings  # of the fit

    def __post_init__(self) -> None:
        own = (len(self.settings.scale), len(self.settings.alpha))
        counted = (self.statistics.columns, self.statistics.class_count)
        if own != counted:
            raise ResiDualError(
                f"wanted sums and settings of the same features and classes, got {counted} and "
                f"{own}: they are of different heads."
            )

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add images; arguments and errors are those of `HeadStatistics.add`."""
        self.statistics.add(features, labels, self._weights(labels))

    def forget(self, features: Tensor, labels: Tensor) -> None:
        """Take images out that were added; refused where a class would be left without images."""
        weights = self._weights(labels)
        held = self.statistics.counts
        x, targets, each = checked_batch(
            features, labels, weights, self.statistics.columns, len(held)
        )
        gone = each @ targets
        emptied = (gone > 0) & ((held - gone).abs() <= 1e-9 * held)
        if bool(emptied.any()):
            number = int(emptied.int().argmax())
            raise ResiDualError(
                f"wanted images of every class to be left, got none of class {number}: a ridge "
                "cannot tell a class that it has no image of. Remove the class instead: "
                "ZeroShotClassifier.remove_class, in Python."
            )
        self.statistics.forget(x, labels, weights)

    def add_class(self, features: Tensor) -> int:
        """One more class, the last, with its images (B, K); its number.

        Its strength is the largest of the others', all equal but for several labels. Where classes
        weigh differently its images together weigh what those of the others do on average.
        """
        if len(features) == 0:
            raise ResiDualError("wanted images of the new class, got none.")
        weights = self.settings.class_weights
        own = weights[:1]
        if not bool((weights == weights[0]).all()):
            share = self.statistics.total / len(weights)
            own = torch.full_like(own, share / len(features))
        number = len(weights)
        labels = torch.zeros(len(features), dtype=torch.long)
        checked_batch(features, labels, None, self.statistics.columns, 1)  # before a change
        self.statistics.add_class()
        self.settings = RidgeSettings(
            torch.cat([self.settings.alpha, self.settings.alpha.max().reshape(1)]),
            self.settings.scale,
            torch.cat([self.settings.slopes, torch.ones(1).double()]),
            torch.cat([self.settings.biases, torch.zeros(1).double()]),
            torch.cat([weights, own]),
        )
        self.add(features, torch.full((len(features),), number))
        return number

    def remove_class(self, number: int, features: Tensor | None = None) -> None:
        """Take a class out, and its images (n, K) where sums are not kept of each class."""
        weights = self.settings.class_weights
        if features is not None and not bool((weights == 1).all()):
            labels = torch.full((len(features),), number)
            self.statistics.forget(features, labels, self._weights(labels))
            features = None
        self.statistics.remove_class(number, features)
        kept = torch.arange(len(weights)) != number
        parts = {n: getattr(self.settings, n)[kept] for n in _OWN if n != "scale"}
        self.settings = replace(self.settings, **parts)

    def head(self, text_weight: float, temperature: float) -> ClassHead:
        """The head, in float64, by one Cholesky factor for each strength; a and τ are the fit's.

        Memory: two K × K matrices beside the sums.
        """
        sums, settings = self.statistics, self.settings
        if (sums.counts <= 0).any() or sums.rows < 2:
            number = int(sums.counts.argmin())
            raise ResiDualError(
                f"wanted images of every class, got none of class {number}: remove it first."
            )
        size = sums.rows / sums.total  # weights are of mean 1 in a fit on rows
        centre, offset = sums.sums / sums.total, sums.counts / sums.total
        product = size * (sums.class_sums - torch.outer(sums.counts, centre)).mT
        product = product / settings.scale.unsqueeze(1)
        scatter = sums.squares - sums.total * torch.outer(centre, centre)
        scatter = scatter * (size / settings.scale.unsqueeze(1)) / settings.scale
        weights = torch.empty_like(product)
        before = 0.0
        for alpha in settings.alpha.unique().tolist():
            scatter.diagonal().add_(alpha - before)
            before = alpha
            own = settings.alpha == alpha
            factor = torch.linalg.cholesky(scatter)
            weights[:, own] = torch.cholesky_solve(product[:, own], factor)
        return ClassHead(
            sums.origin + centre,
            settings.scale,
            weights * settings.slopes,
            offset * settings.slopes + settings.biases,
            text_weight,
            temperature,
        )

    def state(self) -> dict[str, Tensor]:
        """What is saved: K (K + 1) / 2 numbers of 8 bytes, and some times K and C K more."""
        # ones may be shared, which a file of tensors refuses
        own = {f"settings.{name}": getattr(self.settings, name).double().clone() for name in _OWN}
        return self.statistics.state() | own

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str = "") -> "RidgeSums":
        """The sums that `state` was taken of."""
        own = {name: state.get(f"settings.{name}") for name in _OWN}
        missing = [name for name, tensor in own.items() if tensor is None]
        if missing:
            raise ResiDualError(
                f"wanted a ridge's settings beside its sums, got none of {', '.join(missing)}."
            )
        rest = {name: t for name, t in state.items() if not name.startswith("settings.")}
        settings = RidgeSettings(**{n: t.double() for n, t in own.items() if t is not None})
        return cls(HeadStatistics.from_state(rest, source), settings)

    def _weights(self, labels: Tensor) -> Tensor | None:
        """Of the images; None where all weigh 1."""
        weights = self.settings.class_weights
        if bool((weights == 1).all()):
            return None
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(weights):
            return None  # whoever counts them says so
        return labelling_in(labels).image_weights(labels, weights)
