"""What a pass over images keeps of each unit, however many images: moments, and their spectra."""

import warnings
from collections.abc import Iterable
from copy import copy
from typing import Any

from torch import nn

from ..errors import ResiDualError
from ..towers.anatomy import TowerAnatomy
from ..towers.captures import Capture
from ..towers.registry import find_tower
from ..towers.units import Unit
from .decomposition import checked_capture, contributions, head_inputs
from .fingerprint import Fingerprint
from .moments import Moments
from .processes import Processes
from .spectra import Components, UnitBasis, check_components, map_spectra, spectrum


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
        self.units = tuple(self.anatomy.units(units))
        if not self.units:
            raise ResiDualError("units=() asks for no unit at all; wanted kinds such as ('head',).")
        self.not_heads = [unit for unit in self.units if unit.kind != "head"]
        self.fingerprint = Fingerprint.of(self.anatomy)
        self.heads = [Moments() for _ in self.anatomy.layers]  # per layer, of ẑ: (H, e + 1)
        self.others = Moments()  # of x_u for the units that are not heads: (U', d)

    @property
    def tower(self) -> TowerAnatomy:
        """The tower that is looked at."""
        if self.anatomy is None:
            raise RuntimeError("an accumulator that was pickled has no model: it can be merged")
        return self.anatomy

    @property
    def count(self) -> int:
        """The number of images seen."""
        return max(self.others.count, *(moments.count for moments in self.heads))

    def update(self, batch: Any) -> None:
        """Run the unadapted model on a batch, check that its units add up, and add them."""
        self.add(checked_capture(self.tower.model, self.tower, batch)[0])

    def add(self, capture: Capture) -> None:
        """Add what a forward pass of the unadapted model has left already."""
        if len(self.not_heads) < len(self.units):
            for layer, moments in enumerate(self.heads):
                moments.update(head_inputs(self.tower, capture, layer))
        if self.not_heads:
            self.others.update(contributions(self.tower, capture, self.not_heads))

    def merge(self, other: "BasisAccumulator") -> None:
        """Add what another accumulator of the same model and units has seen; in any order."""
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
        processes, anatomy = Processes.running(), self.tower
        kinds = dict.fromkeys(unit.kind for unit in self.units)
        processes.check_same(
            {
                "weights": f"{anatomy.architecture} {self.fingerprint.digests['float32'][:12]}",
                "units": ", ".join(kinds),
            },
            "load the same model in the same precision, and ask for the same units everywhere.",
        )
        merged = copy(self)
        merged.anatomy = anatomy
        device = anatomy.float64_device
        if "head" in kinds:
            shape = (anatomy.num_heads, anatomy.factor_width)
            merged.heads = [moments.across_processes(shape, device) for moments in self.heads]
        if self.not_heads:
            shape = (len(self.not_heads), anatomy.readout_width)
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
        self._check_count(components)
        found: dict[Unit, UnitBasis] = {}
        heads = self.heads if len(self.not_heads) < len(self.units) else []
        for layer, moments in enumerate(heads):
            bases = map_spectra(self.tower.head_factor(layer), moments)
            found |= {Unit("head", layer, head): basis for head, basis in enumerate(bases)}
        if self.not_heads:
            parts = zip(self.not_heads, self.others.mean, self.others.covariance(), strict=True)
            for unit, mean, covariance in parts:
                found[unit] = spectrum(mean, covariance, None, self.others.count)
        return [found[unit].truncate(components) for unit in self.units]

    def _check_count(self, components: Components) -> None:
        """Refuse to estimate more directions than the images can carry."""
        width, count = self.tower.readout_width, self.count
        dimension = width if self.not_heads else min(width, self.tower.factor_width)
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
        return {**self.__dict__, "anatomy": None}
