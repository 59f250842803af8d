"""How a readout is made of tokens: what is read, what is written back, a pooling of one's own."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from residual_peft import ResiDualConfig, decompose, find_tower, gains_of, register_architecture
from residual_peft.bases.decomposition import contributions
from residual_peft.towers import registry
from residual_peft.towers.anatomy import TowerAnatomy
from residual_peft.towers.readouts import EndToken, Mean, Readout
from residual_peft.towers.taps import tapped
from residual_peft.towers.units import Unit
from tests.models import clip_vision_model, pixels, randomize
from tests.pairs import table
from tests.slow import layer_norm
from tests.tuner.twin import randomize_gains, relative

TOKENS = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
PLACES: list[tuple[Readout, Any, list[list[int]]]] = [
    (Readout(), 0, [[0]] * 3),
    (Readout(token=-1), -1, [[4]] * 3),
    (EndToken(token_id=9), torch.tensor([2, 0, 4]), [[2], [0], [4]]),
    (Mean(), None, [[0, 1, 2, 3, 4]] * 3),
    (Mean(first=2), None, [[2, 3, 4]] * 3),
    (Mean(first=1, mask="mask"), MASK, [[1, 2, 3, 4], [1, 2], [1, 2, 3]]),
]


@table(("readout", "where", "places"), PLACES)
def test_what_is_read_is_the_mean_of_its_tokens(
    readout: Readout, where: Any, places: list[list[int]]
) -> None:
    wanted = [
        sum(tokens[place] for place in own) / len(own)
        for tokens, own in zip(TOKENS, places, strict=True)
    ]
    torch.testing.assert_close(readout.read(TOKENS, where), torch.stack(wanted))
    # 5 · 2e4 is beyond float16, their mean is not
    half = readout.read(2e4 + 0 * TOKENS.half(), where)
    assert half.dtype == torch.float16
    assert (half == 2e4).all()


@table(("readout", "where", "places"), PLACES)
def test_what_is_written_is_read_back_and_no_other_token_moves(
    readout: Readout, where: Any, places: list[list[int]]
) -> None:
    base = readout.read(TOKENS, where)
    adapted = base + torch.linspace(1, 2, 7, dtype=torch.float64)
    found = readout.write(TOKENS, base, adapted, where)
    torch.testing.assert_close(readout.read(found, where), adapted)
    for row, own in enumerate(places):
        others = [place for place in range(5) if place not in own]
        assert torch.equal(found[row, others], TOKENS[row, others])


def test_a_text_ends_at_its_first_end_token_or_at_the_highest_of_all() -> None:
    ids = torch.tensor([[1, 9, 9, 3], [9, 1, 2, 12]])
    assert EndToken(token_id=9).locate((ids,), {}).tolist() == [1, 0]
    assert EndToken().locate((), {"input_ids": ids}).tolist() == [1, 3]


def test_a_mask_is_found_by_name_or_as_the_second_input() -> None:
    readout = Mean(mask="mask")
    assert readout.locate((), {"mask": MASK}) is MASK
    assert readout.locate((None, MASK), {}) is MASK
    assert readout.locate((None,), {}) is None
    assert Mean().locate((None, MASK), {"mask": MASK}) is None


class Scores(nn.Module):
    """A pooling of no family: each normed token says how much it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(24, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.score(tokens).softmax(1) * tokens).sum(1)


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.pool, self.head = clip_vision_model(), Scores(), nn.Linear(24, 16)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tower: Any = find_tower(self.vision).tower
        tokens = tower.encoder(tower.pre_layrnorm(tower.embeddings(pixel_values)))[0]
        return self.head(self.pool(tower.post_layernorm(tokens)))


@dataclass(frozen=True)
class ByScore(Readout):
    weighted = all_tokens = True

    def weights(self, stream: Tensor, where: Any, module: Any, args: Any, kwargs: Any) -> Tensor:
        return module.score(args[0]).softmax(1).mT


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(registry, "ARCHITECTURES", copy.deepcopy(registry.ARCHITECTURES))

    @register_architecture("Scored")
    def describe(model: Any) -> TowerAnatomy:
        return replace(
            find_tower(model.vision),
            architecture="Scored",
            model=model,
            tower=model,
            projection=model.head,
            projection_path="head",
            readout=ByScore(end=model.pool),
            read=lambda anatomy, given: anatomy.model(**given),
        )

    return randomize(Scored().double())


def test_a_pooling_of_ones_own_is_one_subclass(scored: Any) -> None:
    images = pixels().double()
    tower: Any = find_tower(scored.vision).tower
    found = decompose(scored, images)  # checks the sum
    stream = tower.encoder(written := tower.pre_layrnorm(tower.embeddings(images)))[0]
    wanted = []
    for embed, h in zip(written, stream, strict=True):  # token by token
        normed = layer_norm(h, tower.post_layernorm)
        shares = torch.softmax(normed @ scored.pool.score.weight[0] + scored.pool.score.bias, 0)
        total = torch.zeros(24, dtype=torch.float64)
        for share, own, token in zip(shares, embed, h, strict=True):
            sigma = (token.var(correction=0) + tower.post_layernorm.eps).sqrt()
            total = total + share * tower.post_layernorm.weight * (own - own.mean()) / sigma
        wanted.append(scored.head.weight @ total)
    assert relative(found.contributions[:, 0], torch.stack(wanted)) < 1e-10
    assert found.units[0] == Unit("embed")


def test_a_pooling_of_ones_own_is_adapted(scored: Any) -> None:
    images = pixels().double()
    before = decompose(scored, images)
    model = get_peft_model(scored, ResiDualConfig(granularity="unit", restore_mean=False))
    randomize_gains(model)
    units = [unit for unit in before.units if unit.kind in ("head", "mlp")]
    layer = next(m for m in model.modules() if hasattr(m, "adapter_settings"))
    assert list(layer.adapter_settings["default"].units) == units
    with tapped(scored) as tap:
        model(pixel_values=images)
        parts = contributions(find_tower(scored), tap.take(), units)
    change = torch.einsum("u,bud->bd", gains_of(model).detach().double() - 1, parts)
    assert relative(model(pixel_values=images), before.readout + change) < 1e-6
