"""Which weights a basis belongs to: digests that a copy in another precision still matches."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ResiDualError
from ..hub.files import record_of
from ..towers.anatomy import TowerAnatomy
from ..towers.registry import find_tower

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Fingerprint:
    """Name, class, readout width d and weight digests of a tower.

    `digests` holds the sha256 of the tower's and its projection's weights, cast to each precision,
    so that a half-precision copy of the same weights is known as such.
    """

    name: str
    architecture: str
    width: int
    digests: dict[str, str]

    @classmethod
    def of(
        cls, model: nn.Module | TowerAnatomy, precisions: Iterable[str] = tuple(PRECISIONS)
    ) -> "Fingerprint":
        """Compute the fingerprint of a tower, or of a model's, adapters left out."""
        anatomy = model if isinstance(model, TowerAnatomy) else find_tower(model)
        name = getattr(getattr(anatomy.model, "config", None), "_name_or_path", "")
        return cls(
            name=name or anatomy.architecture,
            architecture=anatomy.architecture,
            width=anatomy.readout_width,
            digests={name: _digest(anatomy, PRECISIONS[name]) for name in precisions},
        )

    def matches(self, other: "Fingerprint") -> bool:
        """Say whether both are of the same weights, in whatever precision."""
        shared = self.digests.keys() & other.digests.keys()
        return self.width == other.width and any(
            self.digests[name] == other.digests[name] for name in shared
        )

    def check(self, model: nn.Module | TowerAnatomy, what: str = "the basis") -> None:
        """Refuse a model of other weights, or of another width; names both models."""
        theirs = Fingerprint.of(model, ())
        if theirs.width != self.width:
            raise ResiDualError(
                f"{what} belongs to {self} with a readout of width {self.width}, but this model, "
                f"{theirs}, has a readout of width {theirs.width}: load it onto the model that it "
                "was fitted on, or fit a new one."
            )
        # float32 alone nearly always settles it: the other two are for copies in half precision
        for precision in PRECISIONS:
            if self.matches(Fingerprint.of(model, (precision,))):
                return
        raise ResiDualError(
            f"{what} belongs to the weights of {self}, and this model, {theirs}, has others: load "
            "it onto the model that it was fitted on, or fit a new one."
        )

    def __str__(self) -> str:
        same = self.name == self.architecture
        return self.architecture if same else f"{self.name} ({self.architecture})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Fingerprint":
        """Read what `to_dict` wrote."""
        value = dict(data) if isinstance(data, Mapping) else data
        what = "a fingerprint has name, architecture, width and digests; this one"
        return record_of(value, cls, what, unknown="ignore")


def digest_of_tensors(tensors: Mapping[str, Iterable[Tensor]]) -> str:
    """The sha256 of the float32 values of tensors, by name: equal however precisely they are kept.

    Bases that are saved are told by it, from the first release on.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        for tensor in tensors[name]:
            digest.update(f"{tuple(tensor.shape)}".encode())
            values = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _weights(
    module: nn.Module, prefix: str, outside: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield the named parameters of a module tree as it was before PEFT wrapped parts of it."""
    if any(module is other for other in outside):
        return
    if isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        yield from _weights(inner, prefix, outside)
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}.{name}", parameter
    for name, child in module.named_children():
        yield from _weights(child, f"{prefix}.{name}", outside)


def _digest(anatomy: TowerAnatomy, dtype: torch.dtype) -> str:
    if anatomy.weights is not None:
        weights = list(anatomy.weights(anatomy).items())
    else:
        weights = list(_weights(anatomy.tower, "tower", anatomy.outside))
        if isinstance(anatomy.projection, nn.Module):
            weights += _weights(anatomy.projection, "projection")
    digest = hashlib.sha256((anatomy.readout.name or "").encode())
    for name, weight in sorted(weights, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        cast = weight.detach().to("cpu", dtype).contiguous().flatten()
        digest.update(cast.view(torch.uint8).numpy().data)
    return digest.hexdigest()
