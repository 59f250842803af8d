"""Spectral cosines against plain loops, on random bases of unequal numbers of directions."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from residual_peft import ResiDualError, SpectralBasis
from residual_peft.analysis import (
    matching,
    same_unit_similarity,
    spectral_cosine,
    spectral_similarity,
)
from residual_peft.towers.units import Unit
from tests.analysis.cases import UNITS, orthonormal, random_basis
from tests.models import clip_model, pixels
from tests.pairs import table

COUNTS = [4, 9, 2, 7, 13, 3, 4, 6, 1, 16, 11]
WIDTH = 18


def twin(x: Tensor, a: Tensor, y: Tensor, b: Tensor, weighted: bool) -> float:
    """One entry at a time, as the definition says."""
    first = a.numpy() if weighted else np.ones(len(a))
    second = b.numpy() if weighted else np.ones(len(b))
    s = np.zeros((len(x), len(y)))
    for i in range(len(x)):
        for j in range(len(y)):
            s[i, j] = abs(float(x[i] @ y[j])) * first[i] * second[j]
    taken = []
    count = min(len(x), len(y))
    rows, columns = set(range(len(x))), set(range(len(y)))
    for _ in range(count):
        value, i, j = max((s[i, j], i, j) for i in rows for j in columns)
        taken.append(value)
        rows.remove(i)
        columns.remove(j)
    return float(np.linalg.norm(taken) / np.linalg.norm(first[:count] * second[:count]))


def of(basis: SpectralBasis, index: int) -> tuple[Tensor, Tensor]:
    return basis.components[index], basis.eigenvalues[index]


@table("weighted", [True, False])
@table("chunk", [1, 300, 2**19])
def test_all_pairs_are_the_loops(
    weighted: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_CHUNK", chunk)
    basis, other = random_basis(COUNTS, WIDTH), random_basis(COUNTS[::-1], WIDTH, seed=1)
    within = spectral_similarity(basis, weighted=weighted)
    between = spectral_similarity(basis, other, weighted=weighted)
    for i in range(len(COUNTS)):
        for j in range(len(COUNTS)):
            expected = twin(*of(basis, i), *of(basis, j), weighted)
            assert float(within.values[i, j]) == pytest.approx(expected, rel=1e-10)
            expected = twin(*of(basis, i), *of(other, j), weighted)
            assert float(between.values[i, j]) == pytest.approx(expected, rel=1e-10)
            one = spectral_cosine(*of(basis, i), *of(other, j), weighted=weighted)
            assert one == pytest.approx(expected, rel=1e-10)
    assert within.values.diagonal().tolist() == [1.0] * len(COUNTS)
    assert bool((between.values <= 1 + 1e-12).all())


def test_spectra_over_many_orders_of_magnitude_are_the_loops() -> None:
    """The matching stops where nothing is left that changes a digit."""
    generator = torch.Generator().manual_seed(5)
    x, y = orthonormal(30, 40, generator), orthonormal(25, 40, generator)
    a, b = 0.3 ** torch.arange(30).double(), 0.5 ** torch.arange(25).double()
    for scale in (1.0, 1e-150):
        found = spectral_cosine(x, scale * a, y, scale * b)
        assert found == pytest.approx(twin(x, a, y, b, True), rel=1e-12)


def test_bounds() -> None:
    generator = torch.Generator().manual_seed(2)
    frame = orthonormal(9, 9, generator)
    a = torch.rand(4).double().sort(descending=True).values
    signs = torch.tensor([1.0, -1, -1, 1]).double()[:, None]
    assert spectral_cosine(frame[:4], a, signs * frame[:4], 3 * a) == pytest.approx(1)
    assert spectral_cosine(frame[:4], a, frame[4:8], a) == pytest.approx(0, abs=1e-12)
    # the same span with other axes is no longer the same, nor is another order of eigenvalues
    turned = orthonormal(4, 4, generator) @ frame[:4]
    assert spectral_cosine(frame[:4], a, turned, a) < 0.99
    flipped = frame[:4].flip(0)
    assert spectral_cosine(frame[:4], a, flipped, a) < 0.99
    assert spectral_cosine(frame[:4], a, flipped, a, weighted=False) == pytest.approx(1)


def test_a_unit_without_directions_is_like_none() -> None:
    basis = random_basis([4, 0, 3], WIDTH)
    found = spectral_similarity(basis)
    assert found.values.isnan().tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, False],
    ]
    assert found.nearest(UNITS[0], 2)[0][0] == UNITS[2]
    assert json.loads(json.dumps(found.rows(), allow_nan=False))[0]["value"] is None
    both = same_unit_similarity({"a": basis, "b": random_basis([4, 2, 3], WIDTH, seed=3)})
    assert both.values[1].isnan().tolist() == [[True, True], [True, False]]


def test_some_units_and_components() -> None:
    basis = random_basis(COUNTS, WIDTH)
    found = spectral_similarity(basis, units=["mlp", "layer1.head0"], components=3)
    assert [str(unit) for unit in found.units] == ["layer1.head0", "layer0.mlp", "layer2.mlp"]
    x, a = of(basis, 3)
    y, b = of(basis, 9)
    expected = twin(x[:3], a[:3], y[:3], b[:3], True)
    assert found.between("layer1.head0", "layer0.mlp") == pytest.approx(expected)
    share = spectral_similarity(basis, components=0.5)
    assert share.between(UNITS[0], UNITS[4]) == pytest.approx(
        twin(*of(basis.truncate(0.5), 0), *of(basis.truncate(0.5), 4), True)
    )


def test_views_of_a_matrix() -> None:
    basis, other = random_basis(COUNTS, WIDTH), random_basis(COUNTS, WIDTH, seed=1)
    within, between = spectral_similarity(basis), spectral_similarity(basis, other)
    layers = within.by_layer()
    assert (layers.layers, layers.others) == ((0, 1, 2), (0, 1, 2))
    block = within.values[3:6, 3:6]
    assert float(layers.values[1, 1]) == pytest.approx(float((block.sum() - 3) / 6))
    assert float(layers.values[0, 2]) == pytest.approx(float(within.values[:3, 6:9].mean()))
    mlps = between.by_layer("mlp")
    assert mlps.layers == (0, 2)
    assert float(mlps.values[1, 1]) == pytest.approx(float(between.values[10, 10]))
    assert math.isnan(float(within.by_layer("mlp").values[0, 0]))
    best = within.nearest("layer0.head1", 3)
    assert len(best) == 3
    values = within.values[1].clone()
    values[1] = -1
    assert best[0] == (UNITS[int(values.argmax())], pytest.approx(float(values.max())))
    assert best[0][1] >= best[1][1] >= best[2][1]
    pairs = len(COUNTS) * (len(COUNTS) - 1) // 2
    assert (len(within.rows()), len(between.rows())) == (pairs, len(COUNTS) ** 2)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_same_unit_across_datasets(weighted: bool) -> None:
    bases = {
        name: random_basis(counts, WIDTH, seed)
        for seed, (name, counts) in enumerate(
            {"one": COUNTS, "two": COUNTS[::-1], "three": COUNTS}.items()
        )
    }
    found = same_unit_similarity(bases, weighted=weighted)
    assert found.values.shape == (11, 3, 3)
    for u in range(11):
        for i, first in enumerate(bases.values()):
            for j, second in enumerate(bases.values()):
                expected = twin(*of(first, u), *of(second, u), weighted)
                assert float(found.values[u, i, j]) == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(found.by_layer()[1], found.values[3:6].mean(0))
    assert list(found.by_layer("mlp")) == [0, 2]
    assert len(found.rows()) == 33
    assert found.rows()[1] == {
        "unit": "layer0.head0",
        "dataset": "one",
        "other": "three",
        "value": float(found.values[0, 0, 2]),
    }


def test_of_a_model_on_two_sets_of_images() -> None:
    model = clip_model()
    bases = {
        "a": SpectralBasis.fit(model, [pixels(80, seed=1)]),
        "b": SpectralBasis.fit(model, [pixels(80, seed=2)]),
    }
    found = same_unit_similarity(bases, units=["head"])
    unlike = spectral_similarity(bases["a"], bases["b"], units=["head"])
    torch.testing.assert_close(unlike.values.diagonal(), found.values[:, 0, 1])
    apart = unlike.values.masked_select(~torch.eye(4, dtype=torch.bool))
    assert float(found.values[:, 0, 1].min()) > float(apart.max())


def test_what_a_user_can_mend() -> None:
    basis, wide = random_basis(COUNTS, WIDTH), random_basis(COUNTS, WIDTH + 3)
    with pytest.raises(ResiDualError, match=r"got widths 18 and 21: .* relative_similarity"):
        spectral_similarity(basis, wide)
    with pytest.raises(ResiDualError, match="got widths 18 and 21"):
        same_unit_similarity({"a": basis, "b": wide})
    with pytest.raises(ResiDualError, match="got widths 18 and 21"):
        spectral_cosine(*of(basis, 0), *of(wide, 0))
    with pytest.raises(ResiDualError, match="two datasets or more, got 1"):
        same_unit_similarity({"a": basis})
    with pytest.raises(ResiDualError, match=r"'a' and 'b' differ in 2, such as \['layer0.mlp'\]"):
        same_unit_similarity({"a": basis, "b": random_basis(COUNTS[:9], WIDTH)})
    found = spectral_similarity(basis, units=["head"])
    with pytest.raises(ResiDualError, match=r"no unit layer0\.mlp among the 9 compared"):
        found.between("layer0.head0", Unit("mlp", 0))
    with pytest.raises(ResiDualError, match=r"kind 'mlp' in layers; these are \['head'\]"):
        found.by_layer("mlp")
