import numpy as np
import pytest

from residual_peft.classifiers.heads.discriminant import fit_discriminant
from residual_peft.classifiers.heads.statistics import HeadStatistics
from residual_peft.classifiers.heads.streamed_discriminant import discriminant_from_statistics
from residual_peft.errors import ResiDualError


@pytest.mark.parametrize("shrinkage", [None, 0.2])
def test_sums_give_the_same_head_as_rows_and_images_can_be_forgotten(task, shrinkage):
    features, labels, _ = task(40, 9, 3)
    statistics = HeadStatistics(9, 3)
    for start in range(0, 40, 13):
        rows = slice(start, start + 13)
        statistics.add(features[rows], labels[rows])
    statistics.forget(features[36:], labels[36:])
    found = discriminant_from_statistics(statistics, shrinkage=shrinkage)
    expected = fit_discriminant(
        features[:36], labels[:36], 3, shrinkage="oas" if shrinkage is None else shrinkage
    ).head
    np.testing.assert_allclose(
        found.scores(features).softmax(1), expected.scores(features).softmax(1), atol=1e-9
    )
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-7, atol=1e-9)


def test_sums_without_a_class_or_an_inverse_are_one_line(task):
    features, labels, _ = task(12, 40, 3)
    statistics = HeadStatistics(40, 4)
    statistics.add(features, labels)
    with pytest.raises(ResiDualError, match=r"wanted images of every class .* none of class 3"):
        discriminant_from_statistics(statistics)
    statistics = HeadStatistics(40, 3)
    statistics.add(features, labels)
    with pytest.raises(ResiDualError, match="wanted a covariance with an inverse, got one of 12"):
        discriminant_from_statistics(statistics, shrinkage=0.0)
