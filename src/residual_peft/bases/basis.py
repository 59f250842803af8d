"""`SpectralBasis`: mean, directions and eigenvalues of each unit; fit, cut, save, load, share."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.progress import Progress
from ..errors import ResiDualError
from ..hub.directories import CARD, local_directory, push_directory
from ..hub.files import PathLike
from ..towers.anatomy import TowerAnatomy
from ..towers.registry import find_tower
from ..towers.units import Unit
from .accumulator import BasisAccumulator
from .fingerprint import Fingerprint, digest_of_tensors
from .processes import Processes
from .reading import reading
from .saved import METADATA_FILE, TENSORS_FILE, card_of, read_basis, write_basis
from .spectra import Components, UnitBasis, check_components, weight_spectra


@dataclass(frozen=True)
class SpectralBasis:
    """The bases of a model's units, and the weights that they belong to.

    ```python
    basis = SpectralBasis.fit(model, loader)          # one streaming pass
    basis["layer3.head5"].components                  # (k, d), orthonormal rows
    basis.truncate(0.9).select(["head"]).save_pretrained("my-basis")
    ```

    U units, d the width of the readout, k_u directions of unit u. The unit `output` is the readout
    itself, bias included.
    """

    units: tuple[Unit, ...]
    means: Tensor  # (U, d)
    components: list[Tensor]  # U of (k_u, d)
    eigenvalues: list[Tensor]  # U of (k_u,), decreasing
    total_variance: Tensor  # (U,), truncated directions included
    num_samples: int | None  # None: from the weights alone
    source: str  # "data" or "weights"
    fingerprint: Fingerprint

    @classmethod
    @torch.inference_mode(False)
    def fit(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        units: Iterable[str] = ("head", "mlp"),
        components: Components = None,
        progress: Progress = False,
        *,
        across_processes: bool = False,
        side: str | None = None,
        readout: str | None = None,
    ) -> "SpectralBasis":
        """Fit bases of the unadapted model in one streaming pass, constant memory.

        Args:
            model: a model with a known tower, adapted or not; its mode is left as it was.
            batches: `pixel_values` tensors (B, C, H, W), or mappings that hold them (for a text
                tower `input_ids`). One such batch by itself will do, too.
            units: kinds of units: "head", "mlp", "embed", "output".
            components: None all directions with variance, int the first k, float the fewest that
                reach a share of the variance.
            progress: True for a bar, or what to call after each batch with its number of images.
            across_processes: under `torch.distributed`, each process gives its own share of the
                images (or none), and all get the basis of all of them.
            side: "image" or "text", as `find_tower`.
            readout: None the model's own, "mean" or "patches", as `find_tower`.

        Raises:
            ResiDualError: no images, pixels that are not finite, too few images for the components,
                an unknown architecture, or units that do not add up to the model's own output.
        """
        check_components(components)
        processes = Processes.running() if across_processes else Processes()
        accumulator = BasisAccumulator(model, units, side=side, readout=readout)
        if isinstance(batches, Tensor | Mapping):
            batches = [batches]
        told: dict[str, Any] = {"progress": progress, "description": "Fitting bases"}
        with processes.in_step():
            for seen in reading(model, accumulator.tower, batches, taps=True, **told):
                assert seen.capture is not None
                accumulator.add(seen.capture)
        if across_processes:
            accumulator = accumulator.across_processes()
        return cls.from_accumulator(accumulator, components)

    @classmethod
    def from_accumulator(
        cls, accumulator: BasisAccumulator, components: Components = None
    ) -> "SpectralBasis":
        """Read out an accumulator, such as one merged from several processes.

        Raises:
            ResiDualError: it has seen no images, or too few for the components.
        """
        return cls._of(
            accumulator.units,
            accumulator.finish(components),
            num_samples=accumulator.count,
            source="data",
            fingerprint=accumulator.fingerprint,
        )

    @classmethod
    def from_weights(
        cls,
        model: nn.Module,
        units: Iterable[str] = ("head", "mlp"),
        components: Components = None,
        *,
        side: str | None = None,
        readout: str | None = None,
    ) -> "SpectralBasis":
        """Take bases from the weights alone, arguments as for `fit`: SVD of each map, means 0.

        Raises:
            ResiDualError: an unknown architecture, unknown units or bad `components`.
        """
        check_components(components)
        anatomy = find_tower(model, side, readout)
        chosen = tuple(anatomy.units(units))
        return cls._of(
            chosen,
            [found.truncate(components) for found in weight_spectra(anatomy, chosen)],
            num_samples=None,
            source="weights",
            fingerprint=Fingerprint.of(anatomy),
        )

    @classmethod
    def _of(cls, units: Iterable[Unit], bases: list[UnitBasis], **metadata: Any) -> "SpectralBasis":
        units = tuple(units)
        if not units:
            raise ResiDualError("a basis of no unit at all was asked for; name at least one unit.")
        return cls(
            units=units,
            means=torch.stack([basis.mean for basis in bases]),
            components=[basis.components for basis in bases],
            eigenvalues=[basis.eigenvalues for basis in bases],
            total_variance=torch.stack([basis.total_variance for basis in bases]),
            **metadata,
        )

    def _with(self, units: Iterable[Unit], bases: list[UnitBasis]) -> "SpectralBasis":
        """Other bases of the same model from the same images."""
        told = {name: getattr(self, name) for name in ("num_samples", "source", "fingerprint")}
        return self._of(units, bases, **told)

    @property
    def width(self) -> int:
        """The width d of the readout."""
        return int(self.means.shape[1])

    @property
    def component_counts(self) -> list[int]:
        """The number of directions k_u of each unit."""
        return [len(components) for components in self.components]

    @property
    def digest(self) -> str:
        """What tells this basis from another of the same weights: the sha256 of its float32 values.

        Equal however precisely the basis was stored.
        """
        return digest_of_tensors({" ".join(map(str, self.units)): (self.means, *self.components)})

    def __getitem__(self, unit: Unit | str) -> UnitBasis:
        unit = Unit.parse(unit) if isinstance(unit, str) else unit
        self._check_has(unit)
        index = self.units.index(unit)
        parts = (self.means, self.components, self.eigenvalues, self.total_variance)
        return UnitBasis(*(part[index] for part in parts))

    def _check_has(self, name: Unit | str) -> None:
        if not any(_is(unit, name) for unit in self.units):
            raise ResiDualError(
                f"the basis has no unit {name}; it has {len(self.units)}, {self.units[0]} to "
                f"{self.units[-1]}. Fit one that has it."
            )

    def truncate(
        self, components: Components, by_unit: Mapping[Unit, Components] | None = None
    ) -> "SpectralBasis":
        """Keep all (None), the first k (int), or the fewest that reach a share of variance (float).

        Args:
            components: how much to keep of each unit.
            by_unit: other choices for some of them.

        Raises:
            ResiDualError: `components` is none of these, or more than the basis holds; names the
                unit.
        """
        check_components(components)
        chosen = {unit: (by_unit or {}).get(unit, components) for unit in self.units}
        most = max((k for k in chosen.values() if isinstance(k, int)), default=0)
        # only where the images ran out: a unit may also have fewer dimensions than was asked for
        seen = self.num_samples
        if seen is not None and most >= seen and seen - 1 in self.component_counts:
            raise ResiDualError(
                f"too few images: components={most} needs at least {most + 1}, this basis has seen "
                f"{seen}. Fit it on more images or ask for fewer."
            )
        kept = []
        for unit in self.units:
            try:
                kept.append(self[unit].truncate(chosen[unit]))
            except ResiDualError as error:
                raise ResiDualError(f"{unit}: {error}") from None
        return self._with(self.units, kept)

    def select(
        self, units: Iterable[Unit | str], layers: Iterable[int] | None = None
    ) -> "SpectralBasis":
        """Keep the given units, named by kind ("head"), by name ("layer3.head5") or as `Unit`.

        Args:
            units: what to keep; the order stays the basis's own.
            layers: keep heads and MLPs of these layers only.

        Raises:
            ResiDualError: the basis has none of one of them.
        """
        wanted = [units] if isinstance(units, str | Unit) else list(units)
        for name in wanted:
            self._check_has(name)
        inside = None if layers is None else set(layers)
        depth = {unit.layer for unit in self.units}
        if inside is not None and (missing := sorted(inside - depth, key=str)):
            raise ResiDualError(f"the basis has no units in the layers {missing}.")
        kept = [
            unit
            for unit in self.units
            if any(_is(unit, name) for name in wanted)
            and (inside is None or unit.layer is None or unit.layer in inside)
        ]
        return self._with(kept, [self[unit] for unit in kept])

    def check_belongs_to(self, model: nn.Module | TowerAnatomy) -> None:
        """Refuse a model with other weights or another width, whatever its precision.

        Raises:
            ResiDualError: with the names of both models.
        """
        self.fingerprint.check(model, "the basis")

    def save_pretrained(self, directory: PathLike, dtype: torch.dtype = torch.float32) -> None:
        """Write `residual_basis.safetensors` and `residual_basis.json`, whole or not at all.

        Args:
            directory: made if missing.
            dtype: of the stored means and components, and where it is wider than float32 of the
                variances; torch.float64 keeps every digit.
        """
        write_basis(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name_or_path: PathLike, **hub_options: Any) -> "SpectralBasis":
        """Load a basis from a directory or a Hub id; `hub_options`: revision, token.

        Raises:
            ResiDualError: not found, a file is missing, cut short or of another kind, or the two
                files do not belong together.
        """
        hub_options |= {"what": "basis", "allow_patterns": [TENSORS_FILE, METADATA_FILE]}
        folder = local_directory(name_or_path, marker=METADATA_FILE, **hub_options)
        return cls(**read_basis(folder))

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> Any:
        """Upload the basis with a card; `hub_options`: commit_message, private, revision, token.

        Returns:
            The Hub client's `CommitInfo`.

        Raises:
            ResiDualError: no right to write there, or the connection broke off; names the id.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / CARD).write_text(card_of(self, repo_id), encoding="utf-8")
            return push_directory(folder, repo_id, **hub_options)


def _is(unit: Unit, name: Unit | str) -> bool:
    return unit == name if isinstance(name, Unit) else name in (unit.kind, str(unit))
