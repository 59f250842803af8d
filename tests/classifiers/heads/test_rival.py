"""What holds for every rival, on handwriting as nobody here made it."""

import pytest
import torch

from residual_peft.classifiers.heads.discriminant import fit_discriminant
from residual_peft.classifiers.heads.gaussian import fit_gaussian
from residual_peft.classifiers.heads.logistic import fit_logistic
from residual_peft.classifiers.heads.lp_plus import fit_lp_plus
from residual_peft.classifiers.heads.nearest import fit_means, fit_neighbours
from residual_peft.classifiers.heads.proker import fit_proker
from residual_peft.classifiers.heads.tip_adapter import fit_tip_adapter, fit_tip_adapter_f
from residual_peft.errors import ResiDualError
from tests.pairs import table

LEAST = {
    fit_logistic: 0.88,
    fit_discriminant: 0.88,
    fit_means: 0.84,
    fit_neighbours: 0.9,
    fit_tip_adapter: 0.9,
    fit_tip_adapter_f: 0.9,
    fit_lp_plus: 0.84,
    fit_gaussian: 0.88,
    fit_proker: 0.9,
}
"""Test accuracy at 10 images per class of 64 pixels; chance is .1."""


@pytest.mark.parametrize("fit", LEAST, ids=lambda fit: fit.__name__)
def test_it_learns_handwriting_and_knows_how_well(digits, fit):
    features, labels = digits
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train = torch.cat([order[labels[order] == digit][:10] for digit in range(10)])
    test = order[~torch.isin(order, train)][:600]
    given = fit(features[train], labels[train], 10)
    right = given.logits(features[test]).argmax(1) == labels[test]
    assert float(right.double().mean()) >= LEAST[fit]
    assert abs(given.left_out.accuracy - float(right.double().mean())) < 0.08
    assert given.parameter_count >= 640
    losses = torch.nn.functional.cross_entropy(given.logits(features[test]), labels[test])
    # as sure as it may be: a left-out loss far from the test's would be no use
    assert float(losses) == pytest.approx(given.left_out.log_loss, rel=0.5)


@table("fit", LEAST, ids=lambda fit: fit.__name__)
def test_numbers_that_are_not_finite_are_named(task, fit):
    features, labels, _ = task()
    features[3, 2] = torch.nan
    with pytest.raises(ResiDualError, match=r"wanted finite features, got nan .* row 3"):
        fit(features, labels, 4)
