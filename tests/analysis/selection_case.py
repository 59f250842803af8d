"""A tiny model's contributions, and the same in float64 from `decompose`, for slow twins."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from residual_peft import decompose
from residual_peft.analysis import Contributions, UnitContribution, collect_contributions
from residual_peft.towers.units import Unit
from tests.models import SIZES, clip_model, pixels

SIZE = SIZES["many heads"]  # 3 layers of 8 heads, d = 20
CLASSES = 5


@dataclass(frozen=True)
class Case:
    """Contributions under test, and float64 truth: what every unit wrote (N, U, d)."""

    seen: Contributions
    units: tuple[Unit, ...]
    written: Tensor
    bias: Tensor
    readout: Tensor
    labels: Tensor

    def index(self, kinds: tuple[str, ...] = ("head",)) -> list[int]:
        return [i for i, unit in enumerate(self.units) if unit.kind in kinds]


def classes(seed: int = 7) -> Tensor:
    """Class embeddings (C, d)."""
    drawn = torch.randn(CLASSES, SIZE.readout, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


@lru_cache
def case(seed: int = 0, count: int = 60) -> Case:
    """Images of one seed; labels that the model is right about rather often, but not always."""
    model, images = clip_model(SIZE), pixels(count, SIZE, seed)
    truth = decompose(model.double(), images.double())
    noise = torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed)).double()
    logits = torch.nn.functional.normalize(truth.readout, dim=-1) @ classes().double().T
    labels = (logits - logits.mean(0) + 0.1 * noise).argmax(-1)
    batch = {"pixel_values": images, "labels": labels}
    seen = collect_contributions(clip_model(SIZE), [batch])
    return Case(seen, tuple(truth.units), truth.contributions, truth.bias, truth.readout, labels)


def naive_right(
    test: Case,
    kept: set[int],
    candidates: list[int],
    *,
    ablation: str,
    others: str,
    reference: Case,
) -> list[bool]:
    """One image, one unit at a time: who is right when only `kept` of the candidates stay."""
    weights, found = classes().double(), []
    middle = [
        sum(row[u] for row in reference.written) / len(reference.labels)
        for u in range(len(test.units))
    ]
    for n in range(len(test.labels)):
        total = torch.zeros(SIZE.readout, dtype=torch.float64)
        for u in range(len(test.units)):
            stays = u in kept if u in candidates else others == "keep"
            if stays:
                total += test.written[n, u]
            elif ablation == "mean":
                total += middle[u]
        if others == "keep" or ablation == "mean":
            total += test.bias
        logits = weights @ (total / total.norm())
        found.append(int(logits.argmax()) == int(test.labels[n]))
    return found


def planted(
    carriers: dict[str, float], seed: int = 0, count: int = 400, heads: int = 8, layers: int = 2
) -> Contributions:
    """Contributions made by hand: some heads write their image's class, the others noise.

    Args:
        carriers: name of a head -> how strongly it writes the class embedding of the label.
        seed: of labels and noise.
        count: images.
        heads: per layer.
        layers: how many.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    parts = []
    for layer in range(layers):
        for head in range(heads):
            unit = Unit("head", layer, head)
            noise = 0.15 * torch.randn(count, SIZE.readout, generator=generator)
            written = (noise + carriers.get(str(unit), 0.0) * classes()[labels]).double()
            mean = written.mean(0)
            left, values, right = torch.linalg.svd(written - mean, full_matrices=False)
            parts.append(
                UnitContribution(
                    unit, mean, right, (left * values).float(), values.square() / (count - 1)
                )
            )
    constant = torch.full((SIZE.readout,), 0.01)
    readout = sum((part.full() for part in parts), constant.expand(count, -1))
    return Contributions(tuple(p.unit for p in parts), tuple(parts), readout, labels)
