"""Records of fits that never were, for reports: small and large, usual and strange."""

import torch

from residual_peft.analysis import Reason
from residual_peft.hub.facts import Facts, MethodRow
from residual_peft.reporting.run_record import (
    ClassReasons,
    GainRecord,
    HeadShares,
    RunRecord,
    TrustRecord,
)
from residual_peft.towers.units import Unit

FACTS = Facts(
    base_model="owner/clip",
    adapter="my-adapter",
    method="one pass over the images, then a convex problem with one solution",
    trained=12,
    dataset="pets",
    splits={"train": 80, "validation": 10, "test": 8},
    templates=("a photo of a {}.", "a {}."),
    settings={"mode": "readout", "units": "head, mlp"},
    basis="80 images",
    seed=0,
    encoding_seconds=2.5,
    fitting_seconds=0.5,
    images_read=90,
    strength=0.01,
    adapter_bytes=5530,
    machine="a processor",
    cores=2,
    versions={"residual-peft": "0.1.0"},
    date="2026-01-31",
)


def gain_record(layers: int = 1, heads: int = 2, components: int = 3, seed: int = 0) -> GainRecord:
    generator = torch.Generator().manual_seed(seed)
    units = []
    for layer in range(layers):
        units += [Unit("head", layer, head) for head in range(heads)] + [Unit("mlp", layer)]
    units.append(Unit("embed"))
    count = len(units) * components
    share = torch.randn(count, generator=generator).square()
    spectrum = torch.logspace(0, -3, components).repeat(len(units))
    return GainRecord(
        units=tuple(units),
        counts=(components,) * len(units),
        gains=1 + 0.3 * torch.randn(count, generator=generator),
        share=0.9 * share / share.sum(),
        toward_label=0.1 * torch.randn(count, generator=generator),
        rescaling_share=0.1,
        eigenvalues=spectrum,
    )


def record(
    class_names: tuple[str, ...] = ("cat", "dog", "bird"),
    images: int = 8,
    *,
    skill: tuple[float, float] = (0.6, 3.0),
    seed: int = 0,
    gains: GainRecord | None = None,
) -> RunRecord:
    """Random logits in which the label stands out by `skill` before and after."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % len(class_names)
    noise = torch.randn(images, len(class_names), generator=generator)
    own = torch.nn.functional.one_hot(labels, len(class_names))
    before, after = (noise * (1 + 0.1 * i) + s * own for i, s in enumerate(skill))
    return RunRecord(class_names, labels, before, after, FACTS, gains or gain_record())


TRIED = (
    MethodRow("zero-shot", "texts alone", 0.3, 0.2, 0.45, 0.34, 2.038, 0, 0.01, bytes=0),
    MethodRow(
        "ridge",
        "ridge on the coordinates",
        0.975,
        0.87,
        0.99,
        0.97,
        0.0281,
        15792,
        1.4,
        True,
        75_900,
    ),
)
TRUST = TrustRecord(360, 0.95, 0.19, 0.04, 1, 0.9, 0.925, 1.25, 200, 0.0213)


def head_record(classes: int, gains: GainRecord | None = None) -> HeadShares:
    """Of the units of some gains; each class has three components for it and three against."""
    gains = gains or gain_record()
    units, reasons = gains.units, []
    for index in range(classes):
        sides = [
            tuple(
                Reason(units[(index + j) % len(units)], j, sign * (0.5 - 0.1 * j), sign)
                for j in range(3)
            )
            for sign in (1, -1)
        ]
        reasons.append(ClassReasons(index, *sides))
    return HeadShares(
        "coordinates",
        units,
        gains.counts,
        gains.share,
        gains.toward_label,
        0.1,
        reasons=tuple(reasons),
    )
