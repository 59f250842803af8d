"""What a `RunRecord` consists of."""

from dataclasses import dataclass

from torch import Tensor

from ...analysis import Reason
from ...errors import ResiDualError
from ...towers.units import Unit


@dataclass(frozen=True)
class GainRecord:
    """K gains of U units, unit after unit, and what they did to the test images.

    Attributes:
        units: the adapted units.
        counts: gains of each, K in all; 1 each where a unit has a single gain.
        gains: λ (K,).
        share: (K,), of the squared change of the logits, as `explain_adapter` divides it.
        toward_label: (K,), mean change of the label's logit.
        rescaling_share: the same for the change of the embeddings' length.
        settings_share: the same for what the adapter's settings drop; all shares add up to 1.
        eigenvalues: variance along each component in the basis (K,); None without components.
    """

    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    gains: Tensor
    share: Tensor
    toward_label: Tensor
    rescaling_share: float = 0.0
    settings_share: float = 0.0
    eigenvalues: Tensor | None = None

    def __post_init__(self) -> None:
        total = sum(self.counts)
        wrong = [name for name, tensor in self.tensors().items() if tensor.shape != (total,)]
        if len(self.units) != len(self.counts) or wrong:
            raise ResiDualError(
                f"wanted {total} numbers for the gains of {len(self.units)} units, got "
                f"{len(self.counts)} counts and another size of {', '.join(wrong) or 'none'}."
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that is (K,), by name."""
        names = ("gains", "share", "toward_label", "eigenvalues")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True)
class ClassReasons:
    """What speaks for a class in its own test images, and what against it, the strongest first."""

    class_index: int
    pro: tuple[Reason, ...]
    con: tuple[Reason, ...]


@dataclass(frozen=True)
class HeadShares:
    """What a class head makes of U units of K components, as `explain_head` divides it.

    Attributes:
        features: "coordinates", or "embedding", of which there are no units: it is read whole.
        units: the adapted units.
        counts: components of each, K in all; 1 each where the adapter keeps no components.
        share: (K,), of how the logits vary over the test images.
        toward_label: (K,), mean of what each adds to the label's logit.
        text_share: of the texts; all shares add up to 1.
        whole: whether a column is a unit, not a component.
        reasons: of the classes that have test images.
    """

    features: str
    units: tuple[Unit, ...]
    counts: tuple[int, ...]
    share: Tensor
    toward_label: Tensor
    text_share: float = 0.0
    whole: bool = False
    reasons: tuple[ClassReasons, ...] = ()

    def __post_init__(self) -> None:
        total = sum(self.counts)
        shapes = [tuple(tensor.shape) for tensor in (self.share, self.toward_label)]
        if len(self.units) != len(self.counts) or shapes != [(total,)] * 2:
            raise ResiDualError(
                f"wanted {total} shares of the {len(self.units)} units that a class head reads, "
                f"got {len(self.counts)} counts and tensors of {shapes[0]} and {shapes[1]}."
            )


@dataclass(frozen=True)
class TrustRecord:
    """What predictions of left-out training images say of how far to trust a fit.

    Attributes:
        images: how many were left out.
        accuracy: share of them that is told right.
        calibration_before: expected calibration error on them of the model as it came.
        calibration_after: of the fit.
        wrong_labels: how many labels look wrong; None where that cannot be told.
        coverage: of the sets of classes that were tried on the test images; None without sets.
        covered: the share of test images whose class is in their set.
        set_size: the mean number of classes in a set.
        more_images: so many more training images ...
        more_points: ... would add about so much to the accuracy, a share of 1; None where that
            cannot be told.
    """

    images: int
    accuracy: float
    calibration_before: float
    calibration_after: float
    wrong_labels: int | None = None
    coverage: float | None = None
    covered: float | None = None
    set_size: float | None = None
    more_images: int | None = None
    more_points: float | None = None

    def __post_init__(self) -> None:
        sets = {x is None for x in (self.coverage, self.covered, self.set_size)}
        more = {x is None for x in (self.more_images, self.more_points)}
        if len(sets) > 1 or len(more) > 1:
            raise ResiDualError(
                "wanted what left-out images say of sets of classes, and of more images, whole or "
                "not at all, got parts of it."
            )


@dataclass(frozen=True)
class Example:
    """A test image that changed side, small.

    Attributes:
        row: which of the N test images.
        image: JPEG or PNG bytes of at most 160 pixels each way.
    """

    row: int
    image: bytes


@dataclass(frozen=True)
class NamedImage:
    """An image that is shown because of its label: a mistake, or a label that looks wrong.

    Attributes:
        file: what it is called.
        label: number of the class that it is filed under.
        other: of the class that it is taken for.
        score: the probability of `other`, or that the label is wrong.
        image: as in `Example`.
    """

    file: str
    label: int
    other: int
    score: float
    image: bytes
