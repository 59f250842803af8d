"""What an adapter knows of its basis, beside what a user says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..bases.fingerprint import Fingerprint
from ..towers.anatomy import TowerAnatomy

Trusted = Sequence[dict[str, Any]]
"""Fingerprints that a model was found to match before, and is not asked for again."""


@dataclass(frozen=True)
class Fitted:
    """What a fitted or saved adapter knows of its basis, named as in `adapter_config.json`."""

    # directions of each unit, in the units' order; in stream mode by module, of each head
    component_counts: Any = None
    fingerprint: dict[str, Any] | None = None  # of the weights that the basis belongs to
    basis_digest: str | None = None  # what tells it from another basis of the same weights
    basis_source: str | None = None  # "data", "weights", or None where there is no basis
    num_samples: int | None = None  # images that it was fitted on

    @property
    def counts(self) -> Any:
        """`component_counts`, empty where nothing is known."""
        return self.component_counts or []

    @property
    def from_data(self) -> bool:
        """Whether images were needed, so that it cannot be had again from the weights alone."""
        return self.basis_source == "data"

    @property
    def described(self) -> str | None:
        """For people: what it was fitted on; None where there is no basis."""
        if self.num_samples is not None:
            return f"{self.num_samples:,} images"
        return "the weights alone" if self.basis_source else None

    def same_basis(self, other: "Fitted") -> bool:
        """Whether gains over one mean what they mean over the other."""
        names = ("component_counts", "basis_digest", "basis_source")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def same_weights(self, other: "Fitted") -> bool:
        """Whether both belong to the same weights, in whatever precision; None to None."""
        one, two = self.fingerprint, other.fingerprint
        if one is None or two is None:
            return one is two
        return Fingerprint.from_dict(one).matches(Fingerprint.from_dict(two))

    def check_weights(self, model: TowerAnatomy | nn.Module, what: str, trusted: Trusted) -> None:
        """Refuse a model with other weights; fingerprints that it matched before are `trusted`."""
        if self.fingerprint is not None and self.fingerprint not in trusted:
            Fingerprint.from_dict(self.fingerprint).check(model, what)
