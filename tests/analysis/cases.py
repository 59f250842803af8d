"""Random bases and contributions whose units have different numbers of directions."""

import torch
from torch import Tensor

from residual_peft import SpectralBasis
from residual_peft.analysis import Contributions, UnitContribution
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.bases.spectra import spectrum
from residual_peft.towers.units import Unit
from tests.models import clip_model

UNITS = (
    *(Unit("head", layer, head) for layer in range(3) for head in range(3)),
    Unit("mlp", 0),
    Unit("mlp", 2),
)


def orthonormal(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows (count, width)."""
    noise = torch.randn(width, count, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(noise)[0].T


def random_basis(
    counts: list[int], width: int, seed: int = 0, units: tuple[Unit, ...] = UNITS
) -> SpectralBasis:
    """A basis of so many directions per unit with decreasing random eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    values = [
        torch.rand(count, generator=generator, dtype=torch.float64).sort(descending=True).values
        for count in counts
    ]
    return SpectralBasis(
        units=units[: len(counts)],
        means=torch.randn(len(counts), width, generator=generator, dtype=torch.float64),
        components=[orthonormal(count, width, generator) for count in counts],
        eigenvalues=[value.square() for value in values],
        total_variance=torch.tensor([float(value.square().sum()) for value in values]).double(),
        num_samples=1000,
        source="data",
        fingerprint=Fingerprint.of(clip_model()),
    )


def random_contributions(
    counts: list[int],
    width: int,
    images: int,
    seed: int = 0,
    *,
    shared: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Contributions:
    """Contributions of so many directions per unit, correlated where `shared` is not 0.

    `shared` weighs what depends on the image alone: it is the same for all seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(images, max(counts), generator=torch.Generator().manual_seed(99)).double()
    parts = []
    for unit, count in zip(UNITS, counts, strict=False):
        noise = torch.randn(images, count, generator=generator, dtype=torch.float64)
        inside = noise + shared * common[:, :count]
        inside = inside * torch.linspace(2, 0.3, count, dtype=torch.float64)
        inside = inside - inside.mean(0)
        frame = orthonormal(count, width, generator)
        axes = spectrum(torch.zeros(count).double(), inside.T @ inside / (images - 1), None, images)
        parts.append(
            UnitContribution(
                unit=unit,
                mean=2 * torch.randn(width, generator=generator, dtype=torch.float64),
                components=axes.components @ frame,
                coordinates=(inside @ axes.components.T).to(dtype),
                eigenvalues=axes.eigenvalues,
            )
        )
    readout = torch.randn(images, width, generator=generator)
    return Contributions(tuple(part.unit for part in parts), tuple(parts), readout, None)
