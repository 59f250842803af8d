import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.novelty import fit_novelty
from residual_peft.errors import ResiDualError


@pytest.mark.parametrize("columns", [8, 120])
def test_false_alarms_are_as_many_as_asked_and_strangers_are_refused(task, columns):
    features, labels, _ = task(1040, columns, spread=2.0)
    train = slice(0, 40)
    found = fit_novelty(features[train], labels[train], 4, alarm=0.1)
    alarms = found.refused(features[40:]).double().mean()
    assert float(alarms) < 0.2
    # distances that the training images have to their own means would cry far more often
    inside = found.model.distances(features[train]).amin(1)
    naive = found.distances(features[40:]) > np.quantile(inside, 0.9)
    assert float(naive.double().mean()) > 2 * float(alarms) + 0.1
    strangers = features[40:] + 6 * features.std(0) * (-1) ** torch.arange(columns)
    assert found.refused(strangers).double().mean() > 0.9


def test_p_values_are_ranks_among_left_out_images(task):
    features, labels, _ = task(240, 6)
    found = fit_novelty(features[:40], labels[:40], 4)
    p = found.p_values(features[40:])
    for row in range(0, 200, 40):
        farther = (found.left_out >= found.distances(features[40 + row : 41 + row])[0]).sum()
        assert float(p[row]) == pytest.approx((1 + int(farther)) / 41)
    refused = found.refused(features[40:])
    assert (p[refused] <= 0.05).all()
    assert (p[~refused] > 1 / 41).all()


def test_alarms_that_so_few_images_cannot_tell_are_one_line(task):
    features, labels, _ = task(12)
    with pytest.raises(ResiDualError, match=r"wanted at least 20 images to refuse all but 5\.0%"):
        fit_novelty(features, labels, 4)
    with pytest.raises(ResiDualError, match="wanted a share of false alarms between 0 and 1"):
        fit_novelty(features, labels, 4, alarm=0.0)
