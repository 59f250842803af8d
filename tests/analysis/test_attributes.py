"""The share of variance that an attribute explains, against loops; gains compared with it."""

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway, spearmanr

from residual_peft import ResiDualError
from residual_peft.analysis import gain_sense, variance_explained


def test_the_share_is_that_of_an_analysis_of_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (200,), generator=generator)
    coordinates = torch.randn(200, 6, generator=generator) + labels[:, None] * torch.linspace(
        0, 2, 6
    )
    found = variance_explained(coordinates, labels)
    kept = labels >= 0
    count, kinds = int(kept.sum()), 4
    for k in range(6):
        groups = [coordinates[labels == value, k].numpy() for value in range(4)]
        # F = (η²/(V − 1)) / ((1 − η²)/(N − V))
        ratio = float(f_oneway(*groups).statistic) * (kinds - 1) / (count - kinds)
        eta = ratio / (1 + ratio)
        adjusted = 1 - (1 - eta) * (count - 1) / (count - kinds)
        assert float(found[k]) == pytest.approx(adjusted, abs=1e-5)


def test_what_means_nothing_explains_nothing_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    shares = [
        variance_explained(
            torch.randn(60, 40, generator=generator),
            torch.randint(10, (60,), generator=generator),
        )
        for _ in range(50)
    ]
    assert abs(float(torch.stack(shares).mean())) < 0.01


def test_all_of_it_and_none_of_it() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    constant = torch.full((6,), 0.1).double()  # whose mean is rounded
    coordinates = torch.stack([labels * 2.0 - 1, torch.zeros(6), constant, 1e5 * constant], 1)
    assert variance_explained(coordinates, labels).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_of_several_labels_each_class_is_an_attribute() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(50, 3, generator=generator) < 0.4).to(torch.uint8)
    coordinates = torch.randn(50, 4, generator=generator) + labels[:, [1]]
    found = variance_explained(coordinates, labels[:, 1])
    assert torch.equal(found, variance_explained(coordinates, labels[:, 1].long()))
    for wrong in (labels, labels[:7, 1]):
        with pytest.raises(ResiDualError, match=r"each of 50 images, got .* labels\[:, number\]"):
            variance_explained(coordinates, wrong)


def test_gains_that_follow_the_attribute() -> None:
    generator = torch.Generator().manual_seed(2)
    explained = torch.rand(300, generator=generator).double()
    gains = 1 + explained + 0.3 * torch.randn(300, generator=generator)
    found = gain_sense(gains, explained)
    truth = spearmanr(gains.numpy(), explained.numpy())
    assert found.correlation == pytest.approx(float(truth.statistic))
    assert found.p_value == pytest.approx(float(truth.pvalue))
    order = np.argsort(-gains.numpy())
    assert found.amplified == pytest.approx(float(explained[order[:30].copy()].mean()))
    assert found.silenced == pytest.approx(float(explained[order[-30:].copy()].mean()))
    assert found.amplified > found.all > found.silenced
    assert gain_sense(torch.nn.Parameter(gains), explained) == found  # as `gains_of` gives them


def test_components_of_next_to_no_variance_do_not_count() -> None:
    explained = torch.linspace(0, 1, 40).double()
    gains = torch.linspace(0, 2, 40)
    variance = torch.ones(40)
    variance[20:] = 1e-9
    found = gain_sense(gains, explained, variance)
    assert found.components == 20
    assert found.all == pytest.approx(float(explained[:20].mean()))


def test_what_a_user_can_mend() -> None:
    with pytest.raises(ResiDualError, match="at least two values of an attribute"):
        variance_explained(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ResiDualError, match=r"wanted a share per gain, got \(3,\) gains"):
        gain_sense(torch.ones(3), torch.ones(4))
    with pytest.raises(ResiDualError, match="at least ten components to compare, got 9"):
        gain_sense(torch.ones(9), torch.ones(9))
