"""What a `RunRecord` consists of."""

from dataclasses import dataclass

from torch import Tensor

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
class Example:
    """A test image that changed side, small.

    Attributes:
        row: which of the N test images.
        image: JPEG or PNG bytes of at most 160 pixels each way.
    """

    row: int
    image: bytes
