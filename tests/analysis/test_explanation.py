"""Explanations of units and components against the full space, on a random CLIP."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from residual_peft import ResiDualError, SpectralBasis, decompose
from residual_peft.analysis import (
    Contributions,
    TextDictionary,
    collect_contributions,
    explain_components,
    explain_units,
    omp,
    somp,
    text_span,
)
from tests.models import clip_model, pixels

IMAGES, TEXTS, WIDTH = 40, 31, 16


def dictionary() -> TextDictionary:
    generator = torch.Generator().manual_seed(11)
    atoms = torch.randn(TEXTS, WIDTH, generator=generator)
    return TextDictionary(tuple(f"text {i}" for i in range(TEXTS)), atoms)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return clip_model().double()


@pytest.fixture(scope="module")
def seen(model: torch.nn.Module) -> Contributions:
    return collect_contributions(model, [pixels(IMAGES).double()], dtype=torch.float64)


@pytest.fixture(scope="module")
def written(model: torch.nn.Module) -> dict[str, Tensor]:
    """What each unit wrote (N, d), its mean taken out, by another way."""
    truth = decompose(model, pixels(IMAGES).double())
    x = truth.contributions - truth.contributions.mean(0)
    return {str(unit): x[:, index] for index, unit in enumerate(truth.units)}


@pytest.mark.parametrize("method", ["somp", "textspan"])
def test_units_in_few_axes_are_units_in_full(
    method: str, seen: Contributions, written: dict[str, Tensor]
) -> None:
    words = dictionary()
    found = explain_units(seen, words, method, 6)
    assert [e.unit for e in found] == list(seen.units)
    for explanation in found:
        x = written[str(explanation.unit)]
        core = somp if method == "somp" else text_span
        truth = core(x, words.embeddings, 6)
        assert list(explanation.indices) == truth.indices.tolist()
        assert explanation.texts == tuple(f"text {i}" for i in truth.indices.tolist())
        assert explanation.explained == pytest.approx(truth.explained.tolist(), abs=1e-9)
        assert explanation.method == method
        assert explanation.coefficients is None
        assert explanation.component is None


def test_some_units_and_a_rank(seen: Contributions, written: dict[str, Tensor]) -> None:
    words = dictionary()
    found = explain_units(seen, words, "textspan", 3, ["layer1.mlp", "embed"], rank=2)
    assert [str(e.unit) for e in found] == ["embed", "layer1.mlp"]
    truth = text_span(written["layer1.mlp"], words.embeddings, 3, rank=2)
    assert list(found[1].indices) == truth.indices.tolist()
    assert len(found[1].texts) == 2  # two dimensions are soon used up
    assert len(found[0].texts) == 1  # one vector over σ has but one
    assert len(explain_units(seen, words, steps=1, units="head")) == 4
    assert len(explain_units(seen, words, steps=1, units=seen.units[2])) == 1


def test_some_images_have_their_own_mean(seen: Contributions, written: dict[str, Tensor]) -> None:
    words, index = dictionary(), torch.arange(5, 19)
    for method, core in (("somp", somp), ("textspan", text_span)):
        found = explain_units(seen.rows(index), words, method, 4, ["layer1.head0"])[0]
        x = written["layer1.head0"][index]
        truth = core(x - x.mean(0), words.embeddings, 4)
        assert list(found.indices) == truth.indices.tolist()
        assert found.explained == pytest.approx(truth.explained.tolist(), abs=1e-9)


def test_half_precision_says_the_same(model: torch.nn.Module, seen: Contributions) -> None:
    rough = collect_contributions(model, [pixels(IMAGES).double()], dtype=torch.float16)
    words = dictionary()
    for method in ("somp", "textspan"):
        exact = explain_units(seen, words, method, 2, "head")
        for one, other in zip(explain_units(rough, words, method, 2, "head"), exact, strict=True):
            assert one.indices == other.indices
            assert one.explained == pytest.approx(other.explained, abs=1e-3)


def test_components_by_omp(seen: Contributions) -> None:
    words = dictionary()
    found = explain_components(seen, words, ["head"], 3, steps=4)
    assert len(found) == 4 * 3
    assert [e.component for e in found[:4]] == [0, 1, 2, 0]
    for explanation in found:
        direction = seen[explanation.unit].components[explanation.component]
        truth = omp(direction, words.embeddings, 4)
        assert list(explanation.indices) == truth.indices.tolist()
        assert explanation.explained == pytest.approx(truth.explained.tolist())
        assert explanation.coefficients == pytest.approx(truth.coefficients.tolist())
        made = torch.tensor(explanation.coefficients).double() @ (
            words.embeddings[list(explanation.indices)].double()
        )
        left = (direction - made).square().sum()  # a direction has unit length
        assert 1 - float(left) == pytest.approx(explanation.explained[-1], abs=1e-6)
    assert any(c < 0 for e in found for c in e.coefficients)
    assert any(c > 0 for e in found for c in e.coefficients)
    for unit in ("layer0.head1", "layer1.mlp"):
        some = explain_components(seen, words, unit, [5, 2], steps=2)
        assert [(str(e.unit), e.component) for e in some] == [(unit, 5), (unit, 2)]
        every = explain_components(seen, words, unit, steps=2)
        assert len(every) == len(seen[unit].eigenvalues)
        assert [e.indices for e in some] == [every[5].indices, every[2].indices]
    first = explain_units(seen, words, "omp", 4, "head")
    assert first == found[::3]


def test_components_of_a_basis_with_the_other_sign(
    model: torch.nn.Module, seen: Contributions
) -> None:
    basis = SpectralBasis.fit(model, pixels(IMAGES).double(), ["head", "mlp"])
    words = dictionary()
    mine = explain_components(basis, words, "head", 2)
    theirs = explain_components(seen, words, "head", 2)
    for one, other in zip(mine, theirs, strict=True):
        assert (one.unit, one.component, one.indices) == (
            other.unit,
            other.component,
            other.indices,
        )
        along = basis[one.unit].components[one.component].double()
        sign = float((along @ seen[one.unit].components[one.component]).sign())
        assert one.coefficients == pytest.approx([sign * c for c in other.coefficients], abs=1e-4)


def test_a_unit_that_always_writes_the_same(seen: Contributions) -> None:
    part = seen["layer0.head0"]
    noise = 1e-8 * torch.randn(IMAGES, len(part.eigenvalues))
    empty = replace(
        part, coordinates=part.coordinates[:, :0], components=part.components[:0]
    )  # as a collector leaves it
    for still in (replace(part, coordinates=noise + 1e-3), empty):
        alone = Contributions((still.unit,), (still,), seen.readout, None)
        for method in ("somp", "textspan"):
            found = explain_units(alone, dictionary(), method)[0]
            assert found.texts == found.explained == found.indices == ()
            assert str(found) == f"layer0.head0 ({method}): nothing to explain"
    assert explain_units(alone, dictionary(), "omp") == []


def test_what_a_user_can_mend(seen: Contributions) -> None:
    words = dictionary()
    with pytest.raises(ResiDualError, match="'somp' or 'textspan' or 'omp', got 'SOMP'"):
        explain_units(seen, words, "SOMP")
    with pytest.raises(ResiDualError, match="from 1 to 31 steps, one an atom, got 32"):
        explain_units(seen, words, steps=32)
    with pytest.raises(ResiDualError, match=r"no unit 'layer7.mlp' to explain; there are 7, embed"):
        explain_units(seen, words, units=["head", "layer7.mlp"])
    narrow = TextDictionary(("a", "b"), torch.randn(2, WIDTH - 1))
    for explain in (explain_units, explain_components):
        with pytest.raises(ResiDualError, match=r"readout's width 16, got one of width 15; embed"):
            explain(seen, narrow)
    held = len(seen["layer0.head0"].eigenvalues)
    with pytest.raises(ResiDualError, match=f"layer0.head0 has {held} components, 0 to .* 99"):
        explain_components(seen, words, "layer0.head0", [0, 99])
    with pytest.raises(ResiDualError, match="at least the first component, got 0"):
        explain_components(seen, words, components=0)
