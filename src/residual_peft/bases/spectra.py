"""The spectrum of each unit: from one pass over images, or from the weights alone."""

import warnings
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy, check_linear
from ..towers.registry import find_tower
from ..towers.taps import Capture
from ..towers.units import Unit
from .decomposition import checked_capture, contributions, head_inputs
from .fingerprint import Fingerprint
from .moments import Moments
from .processes import Processes

Components = int | float | None


@dataclass(frozen=True)
class UnitBasis:
    """Mean μ (d,), orthonormal rows Φ (k, d) and decreasing eigenvalues (k,) of one unit.

    `total_variance` () counts the directions that were truncated, too.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor
    total_variance: Tensor

    def truncate(self, components: Components) -> "UnitBasis":
        """Keep all directions (None), at most the first k (int), or a share of variance (float).

        A share keeps the fewest directions whose cumulative explained variance reaches it.

        Raises:
            ResiDualError: `components` is none of these, or more than an earlier truncation left.
        """
        check_components(components)
        held, total = len(self.eigenvalues), float(self.total_variance)
        cumulative = self.eigenvalues.double().cumsum(0) / (total or 1.0)
        whole = not held or float(cumulative[-1]) > 1 - 1e-6  # nothing was cut off before
        if components is None:
            return self
        if isinstance(components, int):
            keep, reached = components, whole or components <= held
        else:
            keep = int((cumulative < components - 1e-12).sum()) + 1
            keep = held if whole and components == 1 else keep
            reached = whole or keep <= held
        if not reached:
            raise ResiDualError(
                f"wanted components={components}, but an earlier truncation left {held} with "
                f"{float(cumulative[-1]):.3f} of the variance: fit the basis again with more."
            )
        return replace(self, components=self.components[:keep], eigenvalues=self.eigenvalues[:keep])


def check_components(components: Any) -> None:
    """Refuse what is not None, a count from 1 on, or a share of variance in (0, 1].

    Raises:
        ResiDualError: says what the three mean.
    """
    if components is None:
        return
    if isinstance(components, int) and not isinstance(components, bool) and components >= 1:
        return
    if isinstance(components, float) and 0 < components <= 1:
        return
    raise ResiDualError(
        f"components={components!r}: wanted None (all), an integer from 1 on (the first so many) "
        "or a float in (0, 1] (a share of the variance)."
    )


class BasisAccumulator:
    """Create, add batches, sum up with those of other processes, read out.

    Memory does not grow with the images: (e + 1)² numbers per head, d² per other unit. Pickles
    without its model, so that jobs that run one after the other can be merged, too.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Iterable[str] = ("head", "mlp"),
        *,
        side: str | None = None,
        readout: str | None = None,
    ) -> None:
        self.anatomy: TowerAnatomy | None = find_tower(model, side, readout)
        self.model: nn.Module | None = model
        self.units = tuple(self.anatomy.units(units))
        if not self.units:
            raise ResiDualError("units=() asks for no unit at all; wanted kinds such as ('head',).")
        self.fingerprint = Fingerprint.of(self.anatomy)
        self.heads = [Moments() for _ in self.anatomy.layers]  # per layer, of ẑ: (H, e + 1)
        self.others = Moments()  # of x_u for the units that are not heads: (U', d)

    @property
    def tower(self) -> TowerAnatomy:
        """The tower that is looked at."""
        if self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled has no model")
        return self.anatomy

    @property
    def count(self) -> int:
        """The number of images seen."""
        return max(self.others.count, *(moments.count for moments in self.heads))

    def update(self, batch: Any) -> None:
        """Run the unadapted model on a batch, check that its units add up, and add them.

        Raises:
            ResiDualError: pixels that are not finite, or a sum that leaves the model's output.
        """
        if self.model is None or self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled can be merged, not updated")
        capture, _ = checked_capture(self.model, self.anatomy, batch)
        self.add(capture)

    def add(self, capture: Capture) -> None:
        """Add what a forward pass of the unadapted model has left already."""
        if self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled can be merged, not updated")
        if any(unit.kind == "head" for unit in self.units):
            for layer, moments in enumerate(self.heads):
                moments.update(head_inputs(self.anatomy, capture, layer))
        if others := [unit for unit in self.units if unit.kind != "head"]:
            self.others.update(contributions(self.anatomy, capture, others))

    def merge(self, other: "BasisAccumulator") -> None:
        """Add what another accumulator has seen; the order does not matter.

        Raises:
            ResiDualError: the other one is of other weights or units.
        """
        if other.units != self.units or not self.fingerprint.matches(other.fingerprint):
            mine, theirs = self.fingerprint, other.fingerprint
            raise ResiDualError(
                f"cannot merge moments of {theirs} ({len(other.units)} units) into those of {mine} "
                f"({len(self.units)} units): use the same model and the same units."
            )
        for moments, more in zip(self.heads, other.heads, strict=True):
            moments.merge(more)
        self.others.merge(other.others)

    def across_processes(self) -> "BasisAccumulator":
        """What this one and those of all other processes have seen; each process gets the same.

        Every process of `torch.distributed` has to call it, one that has seen no image, too.

        Raises:
            ResiDualError: in every process: `torch.distributed` is not running, the processes have
                other weights or units, or none has seen an image.
        """
        if self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled can be merged, not reduced")
        processes, anatomy = Processes.running(), self.anatomy
        kinds = dict.fromkeys(unit.kind for unit in self.units)
        processes.check_same(
            {
                "weights": f"{anatomy.architecture} {self.fingerprint.digests['float32'][:12]}",
                "units": ", ".join(kinds),
            },
            "load the same model in the same precision, and ask for the same units everywhere.",
        )
        merged = copy(self)
        merged.model, merged.anatomy = self.model, anatomy
        device = anatomy.float64_device
        if "head" in kinds:
            shape = (anatomy.num_heads, anatomy.factor_width)
            merged.heads = [moments.across_processes(shape, device) for moments in self.heads]
        if others := sum(unit.kind != "head" for unit in self.units):
            shape = (others, anatomy.readout_width)
            merged.others = self.others.across_processes(shape, device)
        if merged.count == 0:
            raise ResiDualError(
                f"wanted images, but none of the {processes.world} processes gave one: give each "
                "its own share of them."
            )
        return merged

    def finish(self, components: Components = None) -> list[UnitBasis]:
        """Read out the spectrum of each unit, in the order of `units`, in float64 on the CPU.

        Raises:
            ResiDualError: no images, or too few for the components asked for.
        """
        check_components(components)
        if self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled can be merged, not read out")
        self._check_count(components)
        found: dict[Unit, UnitBasis] = {}
        heads = any(unit.kind == "head" for unit in self.units)
        for layer, moments in enumerate(self.heads if heads else []):
            for head, basis in enumerate(_head_spectra(self.anatomy, layer, moments)):
                found[Unit("head", layer, head)] = basis
        if others := [unit for unit in self.units if unit.kind != "head"]:
            covariance = self.others.covariance()
            for index, unit in enumerate(others):
                found[unit] = spectrum(
                    self.others.mean[index], covariance[index], None, self.others.count
                )
        return [found[unit].truncate(components) for unit in self.units]

    def _check_count(self, components: Components) -> None:
        """Refuse to estimate more directions than the images can carry."""
        assert self.anatomy is not None
        width, count = self.anatomy.readout_width, self.count
        only_heads = all(unit.kind == "head" for unit in self.units)
        dimension = min(width, self.anatomy.factor_width) if only_heads else width
        wanted = 1
        if isinstance(components, int):
            wanted = dimension = min(components, dimension)
        if count <= wanted:
            asked = f"components={components}" if isinstance(components, int) else "a basis"
            raise ResiDualError(
                f"too few images: {asked} needs at least {wanted + 1}, got {count}. "
                "Give more images or ask for fewer components."
            )
        if count <= dimension:
            warnings.warn(
                f"{count} images span at most {count - 1} of the {dimension} directions that a "
                "head or MLP may write along: only those get gains; more images would give more.",
                stacklevel=5,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None, "anatomy": None}


def _head_spectra(anatomy: TowerAnatomy, layer: int, moments: Moments) -> list[UnitBasis]:
    """PCA of x = B ẑ from the moments of ẑ: thin QR B = Q T, then T Cov(ẑ) Tᵀ.

    method.md, section 2; eigenvectors V give Φ = (Q V)ᵀ.
    """
    factor = anatomy.head_factor(layer).to(moments.mean.device)
    frame, triangle = torch.linalg.qr(factor)  # (H, d, r), (H, r, e + 1)
    inner = triangle @ moments.covariance() @ triangle.mT
    means = (factor @ moments.mean.unsqueeze(2)).squeeze(2)
    return [
        spectrum(means[head], inner[head], frame[head], moments.count)
        for head in range(anatomy.num_heads)
    ]


def spectrum(mean: Tensor, covariance: Tensor, frame: Tensor | None, count: int) -> UnitBasis:
    """Eigendecomposition of a covariance (r, r), its directions taken through `frame` (d, r)."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
    limit = eigenvalues[:1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    keep = min(int((eigenvalues > limit).sum()), count - 1)
    directions = vectors if frame is None else frame @ vectors
    return UnitBasis(
        mean=mean.cpu(),
        components=signed(directions.T[:keep]).cpu(),
        eigenvalues=eigenvalues[:keep].cpu(),
        total_variance=eigenvalues.sum().cpu(),
    )


def weight_spectra(anatomy: TowerAnatomy, units: Iterable[Unit]) -> list[UnitBasis]:
    """Spectra from the weights alone: SVD of R W_u, as if what enters the last map were white.

    W_u is a head's columns of the output projection, the MLP's last linear map, or the identity
    (embed, output). Means are 0 (P β for the output), eigenvalues are squared singular values.
    """
    readout = anatomy.readout_matrix()
    maps = readout.unflatten(1, (anatomy.pools, -1)).transpose(0, 1)  # (J, d, D)
    found: list[UnitBasis] = []
    layer, heads = -1, readout
    for unit in units:
        matrix = readout
        if unit.layer is not None and unit.kind == "head":
            if unit.layer != layer:
                weight = anatomy.stream_weight(unit.layer)[0]
                layer, heads = unit.layer, torch.cat([pool @ weight for pool in maps], dim=2)
            matrix = heads[unit.head]
        elif writers := anatomy.writers(unit)[1:]:
            check_linear(
                f"{anatomy.architecture}: the last map of {unit}", writers[0], anatomy.width
            )
            matrix = anatomy.float64(writers[0].weight)
        if unit.layer is not None and unit.kind == "mlp":
            if (scale := anatomy.layers[unit.layer].mlp_scale) is not None:
                matrix = anatomy.float64(scale)[:, None] * matrix
            matrix = torch.cat([pool @ matrix for pool in maps], dim=1)
        mean = (
            anatomy.readout_bias() if unit.kind == "output" else torch.zeros(len(matrix)).double()
        )
        # a pooled head's map is as wide as the readout: hundreds of SVDs would take a minute
        squared = anatomy.pools > 1 and unit.layer is not None
        found.append(weight_spectrum(matrix, mean, squared=squared))
    return found


def weight_spectrum(matrix: Tensor, mean: Tensor, *, squared: bool = False) -> UnitBasis:
    """SVD of a map M (r, n): the spectrum of what it writes when what enters is white.

    Args:
        matrix: M.
        mean: of the result (r,).
        squared: decompose M Mᵀ instead, several times faster for a wide map, which loses directions
            with less than some 1e-7 of the largest singular value.
    """
    if squared:
        eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.T)
        left, singular = vectors.flip(1), eigenvalues.flip(0).clamp_min(0).sqrt()
        limit = singular[:1] * (max(matrix.shape) * torch.finfo(singular.dtype).eps) ** 0.5
    else:
        left, singular, _ = torch.linalg.svd(matrix, full_matrices=False)
        limit = singular[:1] * max(matrix.shape) * torch.finfo(singular.dtype).eps
    keep = int((singular > limit).sum())
    return UnitBasis(
        mean=mean.cpu(),
        components=signed(left.T[:keep]).cpu(),
        eigenvalues=singular[:keep].square().cpu(),
        total_variance=singular.square().sum().cpu(),
    )


def signed(directions: Tensor) -> Tensor:
    """Turn each row so that its largest entry is positive: a direction has no sign of its own."""
    if not len(directions):
        return directions.clone()
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.where(largest < 0, -1.0, 1.0)
