"""Contributions in principal axes against `decompose` and one full SVD, in float64."""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import BatchFeature

from residual_peft import ResiDualConfig, ResiDualError, SpectralBasis, decompose
from residual_peft.analysis import Contributions, collect_contributions
from residual_peft.solvers.coordinates import collect_coordinates, collect_with_basis
from tests.models import BUILDERS, SIZES, clip_model, pixels
from tests.pairs import in_turn

COUNT = 40


def batches(seed: int = 0, size: str = "usual") -> list[dict[str, Tensor]]:
    images = pixels(COUNT, SIZES[size], seed)
    labels = torch.arange(COUNT) % 3
    return [
        {"pixel_values": images[part], "labels": labels[part]}
        for part in torch.arange(COUNT).split(17)
    ]


@in_turn(
    size=SIZES,
    kind=BUILDERS,
)
def test_contributions_are_those_of_decompose(kind: str, size: str) -> None:
    model = BUILDERS[kind](SIZES[size]).double()
    seen = collect_contributions(
        model,
        [{**b, "pixel_values": b["pixel_values"].double()} for b in batches(size=size)],
        dtype=torch.float64,
    )
    truth = decompose(model, pixels(COUNT, SIZES[size]).double())
    assert list(seen.units) == truth.units
    for index, part in enumerate(seen):
        x = truth.contributions[:, index]
        torch.testing.assert_close(part.full(), x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part.mean, x.mean(0))
        singular = torch.linalg.svdvals(x - x.mean(0))
        values = singular.square() / (COUNT - 1)
        count = len(part.eigenvalues)
        torch.testing.assert_close(part.eigenvalues, values[:count], rtol=1e-9, atol=1e-12)
        assert float(values[count:].sum()) < 1e-10 * float(values.sum())
        gram = part.components @ part.components.T
        torch.testing.assert_close(gram, torch.eye(count).double(), rtol=0, atol=1e-10)
        c = part.coordinates
        torch.testing.assert_close(
            c.T @ c / (COUNT - 1), part.eigenvalues.diag(), rtol=1e-9, atol=1e-9
        )
    torch.testing.assert_close(
        seen.rest, truth.bias.expand(COUNT, -1).float(), rtol=1e-5, atol=1e-5
    )
    assert seen.labels is not None
    assert seen.labels.tolist() == [index % 3 for index in range(COUNT)]


def test_scores_add_up_to_the_readouts() -> None:
    model = clip_model()
    seen = collect_contributions(model, batches())
    directions = torch.randn(4, 16)
    scores = seen.scores(directions)
    assert scores.shape == (COUNT, len(seen.units), 4)
    total = scores.sum(1) + seen.rest @ directions.T
    torch.testing.assert_close(total, seen.readout @ directions.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        scores[:, 2], seen.parts[2].full() @ directions.T, rtol=1e-4, atol=1e-4
    )


def test_some_units_and_the_rest() -> None:
    model = clip_model()
    seen = collect_contributions(model, batches())
    heads = seen.select(["head"], layers=[1])
    assert [str(unit) for unit in heads.units] == ["layer1.head0", "layer1.head1"]
    others = [part.full() for part in seen if part.unit not in heads.units]
    torch.testing.assert_close(heads.rest, seen.rest + sum(others), rtol=1e-4, atol=1e-4)
    few = collect_contributions(model, batches(), ["mlp"], layers=[0])
    assert [str(unit) for unit in few.units] == ["layer0.mlp"]
    torch.testing.assert_close(few["layer0.mlp"].full(), seen["layer0.mlp"].full())
    assert seen.select([seen.units[3]]).units == (seen.units[3],)


def test_rows_keep_their_axes() -> None:
    seen = collect_contributions(clip_model(), batches())
    index = torch.tensor([3, 1, 30])
    some = seen.rows(index)
    torch.testing.assert_close(some["embed"].full(), seen["embed"].full()[index])
    assert some["embed"].components is seen["embed"].components
    assert some.labels is not None
    assert some.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(some.rest, seen.rest[index])


def test_from_the_coordinates_of_an_adapter() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(units=("head", "mlp")))
    rows = collect_with_basis(model, batches())
    mine, truth = Contributions.from_coordinates(rows), collect_contributions(model, batches())
    truth = truth.select(["head", "mlp"])
    assert mine.units == truth.units
    for one, other in zip(mine, truth, strict=True):
        torch.testing.assert_close(one.full(), other.full(), rtol=1e-4, atol=1e-4)
        count = len(other.eigenvalues)
        torch.testing.assert_close(one.eigenvalues[:count], other.eigenvalues, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(mine.rest, truth.rest, rtol=1e-3, atol=1e-3)


def test_the_axes_as_a_basis() -> None:
    model = clip_model()
    seen = collect_contributions(model, batches(), ["head", "mlp"])
    mine, truth = seen.basis(model), SpectralBasis.fit(model, batches())
    assert mine.units == truth.units
    assert mine.num_samples == COUNT
    mine.check_belongs_to(model)
    torch.testing.assert_close(mine.means, truth.means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.total_variance, truth.total_variance, rtol=1e-5, atol=1e-8)
    for one, other in zip(mine.eigenvalues, truth.eigenvalues, strict=True):
        torch.testing.assert_close(one, other[: len(one)], rtol=1e-4, atol=1e-7)


def test_labels_in_whatever_mapping_in_all_batches_or_none() -> None:
    model, given = clip_model(), batches()
    seen = collect_contributions(model, [BatchFeature(batch) for batch in given])
    assert seen.labels is not None
    assert len(seen.labels) == COUNT
    rows = collect_with_basis(
        get_peft_model(clip_model(), ResiDualConfig()), [BatchFeature(batch) for batch in given]
    )
    assert torch.equal(rows.labels, seen.labels)
    given[0] = {"pixel_values": given[0]["pixel_values"]}
    with pytest.raises(ResiDualError, match="labels in all batches or in none, got 23 for 40 im"):
        collect_contributions(model, given)


def test_axes_of_rows_are_those_of_all_images() -> None:
    model = clip_model()
    seen = collect_contributions(model, batches())
    assert seen.rows(torch.arange(5)).basis(model).num_samples == COUNT
    assert seen.select("mlp", layers=[0]).rows(torch.arange(5)).collected == COUNT
    assert [unit.kind for unit in seen.select("head").units] == ["head"] * 4


def test_what_a_user_can_mend() -> None:
    model = clip_model()
    seen = collect_contributions(model, [pixels(4)])
    assert seen.labels is None
    with pytest.raises(ResiDualError, match=r"no contributions of layer9\.mlp; there are those of"):
        seen["layer9.mlp"]
    with pytest.raises(ResiDualError, match="no unit is left of 7"):
        seen.select(["head"], layers=[7])
    with pytest.raises(ResiDualError, match="no unit is left with"):
        collect_contributions(model, [pixels(4)], ["head"], layers=[7])
    with pytest.raises(ResiDualError, match="at least two images to tell variance from, got 1"):
        collect_contributions(model, [pixels(1)])
    one = get_peft_model(clip_model(), ResiDualConfig())
    rows = collect_with_basis(one, batches()).rows(torch.tensor([3]))
    with pytest.raises(ResiDualError, match="at least two images to tell variance from, got 1"):
        Contributions.from_coordinates(rows)
    output = get_peft_model(clip_model(), ResiDualConfig.paper("rd_y"))
    with pytest.raises(ResiDualError, match="the output is no unit of its own"):
        Contributions.from_coordinates(collect_coordinates(output, batches()))
