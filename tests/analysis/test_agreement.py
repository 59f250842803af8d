"""The simpler measures against plain loops over images and units, in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.linalg import norm

from residual_peft import ResiDualError
from residual_peft.analysis import (
    Contributions,
    agreement,
    collect_contributions,
    correlation,
    image_cosine,
    mean_cosine,
    relative_similarity,
)
from tests.analysis.cases import random_contributions
from tests.models import SIZES, clip_model, pixels
from tests.pairs import table

Array = np.ndarray
COUNTS = [4, 9, 2, 7]
ANCHORS = torch.tensor([3, 0, 21, 8, 13])


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / norm(x) / norm(y))


def by_means(x: Array, y: Array) -> float:
    return cosine(x.mean(0), y.mean(0))


def by_images(x: Array, y: Array) -> float:
    return float(np.mean([cosine(one, other) for one, other in zip(x, y, strict=True)]))


def by_coordinates(x: Array, y: Array) -> float:
    return float(np.mean([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(x.shape[1])]))


def by_anchors(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    values = []
    for image in range(len(x)):
        mine = np.array([cosine(x[image], x[anchor]) for anchor in ANCHORS])
        theirs = np.array([cosine(y[image], y[anchor]) for anchor in ANCHORS])
        values.append(cosine(mine, theirs))
    return float(np.mean(values))


def relative(seen: Contributions, other: Contributions | None = None) -> object:
    return relative_similarity(seen, other, anchors=ANCHORS)


MEASURES = {
    "means": (mean_cosine, by_means),
    "images": (image_cosine, by_images),
    "correlation": (correlation, by_coordinates),
    "relative": (relative, by_anchors),
}


@table("name", MEASURES)
def test_half_precision_holds_what_it_adds_up(name: str) -> None:
    measure, _ = MEASURES[name]
    exact = random_contributions(COUNTS, 64, 400, shared=0.7)
    parts = [replace(part, coordinates=part.coordinates.half()) for part in exact]
    half = measure(replace(exact, parts=tuple(parts)))
    torch.testing.assert_close(half.values, measure(exact).values, rtol=0, atol=5e-3)


@table("numbers", [50, 2**24])
@table("name", MEASURES)
def test_measures_are_the_loops(name: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_NUMBERS", numbers)
    measure, slow = MEASURES[name]
    seen = random_contributions(COUNTS, 12, 35, shared=0.7)
    other = random_contributions(COUNTS[1:], 12, 35, seed=1, shared=0.7)
    within, between = measure(seen), measure(seen, other)
    assert (within.within, between.within) == (True, False)
    for i, one in enumerate(seen):
        for j, two in enumerate(seen):
            expected = slow(one.full().numpy(), two.full().numpy())
            assert float(within.values[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for j, two in enumerate(other):
            expected = slow(one.full().numpy(), two.full().numpy())
            assert float(between.values[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert within.values.diagonal().tolist() == pytest.approx([1.0] * len(COUNTS))


@table("name", MEASURES)
def test_float32_is_near(name: str) -> None:
    measure, _ = MEASURES[name]
    exact = measure(random_contributions(COUNTS, 12, 35, shared=0.7))
    single = measure(random_contributions(COUNTS, 12, 35, shared=0.7, dtype=torch.float32))
    torch.testing.assert_close(single.values, exact.values, rtol=1e-5, atol=1e-6)
    mixed = measure(
        random_contributions(COUNTS, 12, 35, shared=0.7),
        random_contributions(COUNTS, 12, 35, shared=0.7, dtype=torch.float32),
    )
    torch.testing.assert_close(mixed.values, exact.values, rtol=1e-5, atol=1e-6)


def test_correlation_of_some_images_and_of_flat_coordinates() -> None:
    seen = random_contributions(COUNTS, 12, 35, shared=0.7)
    index = torch.tensor([4, 30, 2, 9, 17, 11, 5])
    found = correlation(seen.rows(index))  # their mean is no longer zero, nor are they uncorrelated
    expected = by_coordinates(*(part.full()[index].numpy() for part in seen.parts[:2]))
    assert float(found.values[0, 1]) == pytest.approx(expected, rel=1e-9)
    components = seen.parts[0].components.clone()
    components[:, 5] = 0
    object.__setattr__(seen.parts[0], "components", components)
    x, y = (np.delete(part.full().numpy(), 5, axis=1) for part in seen.parts[:2])
    expected = by_coordinates(x, y) * 11 / 12
    assert float(correlation(seen).values[0, 1]) == pytest.approx(expected, rel=1e-9)


def test_relative_similarity_sees_no_rotation_and_any_width() -> None:
    images = pixels(50)
    narrow = collect_contributions(clip_model(), [images], ["head"])
    wide = collect_contributions(clip_model(SIZES["d > D"]), [images], ["head"])
    found = relative_similarity(narrow, wide, anchors=20)
    assert found.values.shape == (4, 6)
    assert bool((found.values.abs() < 1).all())
    drawn: Callable[..., Contributions] = random_contributions
    one, two = drawn(COUNTS, 12, 60, shared=200.0), drawn(COUNTS, 19, 60, seed=3, shared=200.0)
    same = relative_similarity(one, two, anchors=30, seed=2)  # the images alone decide both
    assert float(same.values.diagonal().min()) > 0.99
    assert float(relative_similarity(one, two, anchors=10**6).values.diagonal().min()) > 0.99


def test_what_a_user_can_mend() -> None:
    seen = random_contributions(COUNTS, 12, 35)
    for measure in (mean_cosine, image_cosine, correlation):
        with pytest.raises(ResiDualError, match=r"got widths 12 and 19: .* relative_similarity"):
            measure(seen, random_contributions(COUNTS, 19, 35))
    with pytest.raises(ResiDualError, match=r"the same images, got 35 and 30: collect both"):
        relative_similarity(seen, random_contributions(COUNTS, 19, 30))
    with pytest.raises(ResiDualError, match="at least one anchor image, got anchors=0"):
        relative_similarity(seen, anchors=0)
    with pytest.raises(ResiDualError, match=r"indices of the 35 images, got \[3, 35\]"):
        relative_similarity(seen, anchors=torch.tensor([3, 35]))
