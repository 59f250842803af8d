"""Dimensions against known manifolds, scikit-dimension and a numpy twin."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import skdim
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from residual_peft import ResiDualError
from residual_peft.analysis import (
    collect_contributions,
    dimension_profile,
    linear_dimension,
    neighbours,
    participation_ratio,
    two_nn,
)
from residual_peft.data.progress import Bar
from tests.analysis.cases import orthonormal, random_basis, random_contributions
from tests.models import clip_model, pixels
from tests.pairs import table

Array = np.ndarray


def clouds() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    found = {}
    sphere = rng.normal(size=(900, 4))
    found["sphere"] = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    turn = 1.5 * np.pi * (1 + 2 * rng.random(800))
    height = 21 * rng.random(800)
    found["swiss roll"] = np.stack([turn * np.cos(turn), height, turn * np.sin(turn)], 1)
    found["cube"] = rng.random((700, 6))
    found["subspace"] = rng.normal(size=(850, 3)) @ rng.normal(size=(3, 40)) + 100
    found["skewed"] = rng.normal(size=(600, 30)) * 0.8 ** np.arange(30)
    return found


def twin(points: Array, discard: float = 0.1) -> tuple[float, float]:
    """The fit and the likelihood from all distances, point by point."""
    ratios = []
    for row, distances in enumerate(cdist(points, points)):
        first, second = sorted(np.delete(distances, row))[:2]
        ratios.append(second / first)
    count = len(ratios)
    over = under = 0.0
    for rank, ratio in enumerate(sorted(ratios)[: min(int(count * (1 - discard)), count - 1)], 1):
        over += math.log(ratio) * -math.log(1 - rank / count)
        under += math.log(ratio) ** 2
    return over / under, (count - 1) / sum(map(math.log, ratios))


@table("name", clouds())
def test_two_nn_is_that_of_scikit_dimension(name: str) -> None:
    cloud = clouds()[name]
    found = two_nn(torch.from_numpy(cloud), block=97)
    assert found.dimension == pytest.approx(skdim.id.TwoNN().fit(cloud).dimension_, rel=1e-10)
    assert (found.points, found.duplicates) == (len(cloud), 0)


@table("discard", [0.0, 0.1, 0.35])
def test_two_nn_is_its_twin_whatever_the_blocks(discard: float) -> None:
    cloud = clouds()["skewed"][:301]
    dimension, likelihood = twin(cloud, discard)
    for block in (1, 64, 1000):
        found = two_nn(torch.from_numpy(cloud), discard=discard, block=block)
        assert found.dimension == pytest.approx(dimension, rel=1e-10)
        assert found.likelihood == pytest.approx(likelihood, rel=1e-10)


def sphere(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    points = torch.randn(count, dimension + 1, generator=generator)
    return points / points.norm(dim=1, keepdim=True)


def roll(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    turn = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator))
    height = 21 * torch.rand(count, generator=generator)
    return torch.stack([turn * turn.cos(), height, turn * turn.sin()], 1)


def flat(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, dimension, generator=generator)


def cube(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, dimension, generator=generator)


MANIFOLDS = [(sphere, 2), (sphere, 5), (roll, 2), (flat, 1), (flat, 4), (cube, 3), (cube, 6)]


@table(("manifold", "dimension"), MANIFOLDS)
def test_known_manifolds_laid_in_many_dimensions(
    manifold: Callable[..., Tensor], dimension: int
) -> None:
    generator = torch.Generator().manual_seed(dimension)
    points = manifold(3000, dimension, generator)
    high = points.double() @ orthonormal(points.shape[1], 64, generator) + 3
    found = two_nn(high)
    # the estimate's spread is D / sqrt(N); a cube's sides make it smaller the more there are
    tolerance = 0.08 * dimension if manifold is not cube else 0.15 * dimension
    assert found.dimension == pytest.approx(dimension, abs=tolerance)
    assert found.likelihood == pytest.approx(dimension, abs=tolerance)
    in_single = two_nn(high.float())
    assert in_single.dimension == pytest.approx(found.dimension, rel=1e-3)


def test_far_from_the_origin_no_digit_is_lost() -> None:
    cloud = clouds()["skewed"][:200] + 1e7
    assert two_nn(torch.from_numpy(cloud)).dimension == pytest.approx(twin(cloud)[0], rel=1e-9)
    single = (clouds()["sphere"][:200] + 300).astype(np.float32)
    # what rounding has left of the points, not of the distances
    expected = twin(single.astype(np.float64))[0]
    assert two_nn(torch.from_numpy(single)).dimension == pytest.approx(expected, rel=1e-9)


def test_tight_clusters_are_computed_from_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    centres = 1e4 * rng.random((12, 5))
    cloud = np.concatenate([centre + 1e-5 * rng.random((20, 5)) for centre in centres])
    seen = []
    slow = neighbours._from_differences

    def spy(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        return slow(points, rows)

    monkeypatch.setattr(neighbours, "_from_differences", spy)
    found = two_nn(torch.from_numpy(cloud), block=50)
    assert sum(seen) == len(cloud)  # 1e-10 between squares of 1e8: the product cannot tell
    assert found.dimension == pytest.approx(twin(cloud)[0], rel=1e-9)
    assert 3.5 < found.dimension < 6.5
    seen.clear()
    two_nn(torch.from_numpy(clouds()["cube"]))
    assert sum(seen) == 0


def test_copies_are_counted_and_left_out() -> None:
    cloud = torch.from_numpy(clouds()["cube"][:400])
    alone = two_nn(cloud)
    copies = torch.cat([cloud[:150], cloud, cloud[:60], cloud[390:]])
    found = two_nn(copies[torch.randperm(len(copies))], block=33)
    assert (found.points, found.duplicates) == (400, 220)
    assert found.dimension == pytest.approx(alone.dimension, rel=1e-10)
    # copies that ran in other batches: near, in clusters of up to four
    noisy = copies + 1e-8 * torch.randn(copies.shape, dtype=torch.float64)
    assert two_nn(noisy).duplicates == 0
    near = two_nn(noisy, resolution=1e-6)
    assert (near.points, near.duplicates) == (400, 220)
    assert near.dimension == pytest.approx(alone.dimension, rel=1e-5)
    assert two_nn(noisy).dimension < 0.7 * alone.dimension  # what they would do
    single = two_nn((copies + 1e-9 * torch.randn(copies.shape)).float())
    assert single.duplicates == 220  # below float32's own rounding


def test_points_on_a_grid_are_all_equally_far() -> None:
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    assert (two_nn(grid).dimension, two_nn(grid).likelihood) == (math.inf, math.inf)


def test_linear_dimension_is_the_fewest() -> None:
    values = torch.rand(20).double().sort(descending=True).values
    total = float(values.sum())
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        count = 1
        while float(values[:count].sum()) / total < share - 1e-12:
            count += 1
        assert linear_dimension(values, share=share) == count
        assert linear_dimension(values.float(), share=share) == count
        assert abs(linear_dimension(values.bfloat16(), share=share) - count) <= 1
    assert linear_dimension(values[:5], total=values.sum(), share=0.2) < 5
    assert linear_dimension(torch.tensor([0.5, 0.4, 0.1]), share=0.9) == 2
    assert linear_dimension(torch.zeros(3)) == 0
    with pytest.raises(ResiDualError, match=r"the 5 that an earlier truncation left hold 0\.\d+"):
        linear_dimension(values[:5], total=values.sum())
    with pytest.raises(ResiDualError, match=r"share of the variance in \(0, 1\], got share=1.5"):
        linear_dimension(values, share=1.5)


def test_participation_ratio() -> None:
    values = torch.rand(9).double()
    expected = sum(values.tolist()) ** 2 / sum(value**2 for value in values.tolist())
    assert participation_ratio(values) == pytest.approx(expected)
    assert participation_ratio(1e-200 * values) == pytest.approx(expected)
    assert participation_ratio(torch.tensor([4.0, 0.0])) == 1
    assert math.isnan(participation_ratio(torch.zeros(2)))


def test_profile_of_contributions(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(Bar, "in_a_log", True)
    seen = random_contributions([4, 9, 2, 7, 5, 3, 4, 6, 8, 12, 11], 20, 150)
    found = dimension_profile(seen, share=0.9, two_nn_images=100, seed=4, block=31, progress=True)
    assert capsys.readouterr().err.startswith("TwoNN: 11 units in ")  # one line, in a log
    chosen = torch.randperm(150, generator=torch.Generator().manual_seed(4))[:100]
    for index, part in enumerate(seen):
        full = part.full().double()  # (N, d): the readout's own distances and spectrum
        assert float(found.two_nn[index]) == pytest.approx(two_nn(full[chosen]).dimension)
        values = torch.linalg.svdvals(full - full.mean(0)).square()
        assert int(found.linear[index]) == linear_dimension(values, share=0.9)
        assert float(found.first_share[index]) == pytest.approx(float(values[0] / values.sum()))
        assert float(found.participation[index]) == pytest.approx(participation_ratio(values))
        ratio = float(found.linear[index]) / float(found.two_nn[index])
        assert float(found.ratio[index]) == pytest.approx(ratio)
    assert found.images == 100
    layers = found.by_layer()
    names = [(row.layer, row.kind, row.units) for row in layers]
    assert names == [(0, "head", 3), (0, "mlp", 1), (1, "head", 3), (2, "head", 3), (2, "mlp", 1)]
    assert layers[2].linear == pytest.approx(float(found.linear[3:6].double().mean()))
    assert layers[2].ratio == pytest.approx(float(found.ratio[3:6].mean()))
    assert layers[4].two_nn == pytest.approx(float(found.two_nn[10]))
    assert json.loads(json.dumps(found.rows(), allow_nan=False))[1]["unit"] == "layer0.head1"


def test_profile_of_a_basis_has_no_two_nn() -> None:
    basis = random_basis([4, 9, 2], 20)
    found = dimension_profile(basis)
    assert found.images == 0
    assert bool(found.two_nn.isnan().all())
    for index, values in enumerate(basis.eigenvalues):
        assert int(found.linear[index]) == linear_dimension(values)
        assert float(found.first_share[index]) == pytest.approx(float(values[0] / values.sum()))
    assert found.rows()[0]["two_nn"] is None
    assert math.isnan(found.by_layer()[0].ratio)
    cut = basis.truncate(2)
    assert dimension_profile(cut, share=0.1).first_share.tolist() == found.first_share.tolist()
    with pytest.raises(ResiDualError, match=r"the 2 that an earlier truncation left hold"):
        dimension_profile(cut)


def test_profile_of_a_model() -> None:
    model = clip_model()
    found = dimension_profile(collect_contributions(model, [pixels(60)]))
    assert len(found.units) == 7
    assert bool((found.two_nn > 0).all())
    assert bool(((found.participation >= 1) & (found.first_share <= 1)).all())
    assert {row.kind for row in found.by_layer()} == {"head", "mlp"}
    without = dimension_profile(collect_contributions(model, [pixels(60)]), two_nn_images=0)
    assert without.images == 0
    assert without.linear.tolist() == found.linear.tolist()


def test_what_a_user_can_mend() -> None:
    with pytest.raises(ResiDualError, match="three different points, got 2 among 6"):
        two_nn(torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(3, 1))
    with pytest.raises(ResiDualError, match=r"a matrix \(N, k\) of finite numbers, got \(4,\)"):
        two_nn(torch.rand(4))
    with pytest.raises(ResiDualError, match="finite: False"):
        two_nn(torch.tensor([[1.0, math.nan]]).repeat(5, 1))
    with pytest.raises(ResiDualError, match=r"a share to discard in \[0, 1\), got discard=1"):
        two_nn(torch.rand(5, 2), discard=1)
    seen = random_contributions([4, 3], 20, 150)
    with pytest.raises(ResiDualError, match="got two_nn_images=-1"):
        dimension_profile(seen, two_nn_images=-1)
    with pytest.raises(ResiDualError, match="at least 3 images for TwoNN or 0 for none, got"):
        dimension_profile(seen, two_nn_images=2)


def test_a_unit_that_says_two_things_has_no_two_nn() -> None:
    seen = random_contributions([4, 3], 20, 150)
    flat = replace(seen.parts[0], coordinates=seen.parts[0].coordinates[:2].repeat(75, 1))
    found = dimension_profile(replace(seen, parts=(flat, *seen.parts[1:])))
    assert found.two_nn.isnan().tolist() == [True, False]
    assert found.rows()[0]["two_nn"] is None
