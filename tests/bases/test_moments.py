import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from residual_peft.bases.moments import Moments


def moments_of(*batches: torch.Tensor) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


def test_equal_numpys_mean_and_covariance_whatever_the_stack_of_units() -> None:
    x = torch.randn(50, 3, 2, 5, dtype=torch.float64) * 3 + 1
    moments = moments_of(*x.split(7))
    assert moments.count == 50
    assert moments.covariance().shape == (3, 2, 5, 5)
    for i in range(3):
        for j in range(2):
            samples = x[:, i, j].numpy()
            np.testing.assert_allclose(moments.mean[i, j], samples.mean(0), rtol=1e-12)
            covariance = np.cov(samples, rowvar=False)
            np.testing.assert_allclose(moments.covariance()[i, j], covariance, rtol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda s: sum(s) > 1),
    data=st.data(),
)
def test_neither_batch_sizes_nor_order_nor_merging_matter(
    sizes: list[int], data: st.DataObject
) -> None:
    x = torch.randn(sum(sizes), 2, 4, generator=torch.Generator().manual_seed(len(sizes)))
    whole = moments_of(x.double())
    parts = data.draw(st.permutations(list(x.split(sizes))))
    cut = data.draw(st.integers(0, len(parts)))
    merged = moments_of(*parts[:cut])
    merged.merge(moments_of(*parts[cut:]))
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-11, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = torch.randn(1000, 3, dtype=torch.float64)
    far = moments_of(*(x + 1e7).split(10)).covariance()
    torch.testing.assert_close(far, torch.cov(x.T), rtol=1e-7, atol=1e-8)


def test_sums_are_float64_whatever_comes_in() -> None:
    x = torch.rand(300, 4, requires_grad=True)
    moments = moments_of(*x.half().split(3))
    assert moments.mean.dtype == moments.m2.dtype == torch.float64
    assert not moments.mean.requires_grad
    torch.testing.assert_close(moments.mean, x.detach().half().double().mean(0), rtol=1e-13, atol=0)


def test_an_empty_start_and_empty_batches() -> None:
    moments = Moments()
    moments.update(torch.randn(0, 3))
    moments.merge(Moments())
    assert moments.count == 0
    with pytest.raises(ValueError, match="needs two samples, got 0"):
        moments.covariance()
    moments.update(torch.randn(1, 3))
    with pytest.raises(ValueError, match="needs two samples, got 1"):
        moments.covariance()


def test_merging_leaves_the_other_as_it_was() -> None:
    one, other = Moments(), moments_of(torch.randn(5, 3))
    mean, m2 = other.mean.clone(), other.m2.clone()
    one.merge(other)
    one.update(torch.randn(4, 3))
    assert torch.equal(other.mean, mean)
    assert torch.equal(other.m2, m2)
    assert other.count == 5


def test_other_shapes_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"moments of shape \(4,\) into \(3,\)"):
        moments_of(torch.randn(5, 3)).merge(moments_of(torch.randn(5, 4)))
