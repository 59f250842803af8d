import pytest
import torch

from residual_peft.classifiers.heads.left_out import LeftOut
from residual_peft.classifiers.heads.ridge import fit_ridge
from residual_peft.classifiers.heads.trust import calibration_error, suspicious_labels
from residual_peft.errors import ResiDualError
from tests.pairs import table


def left_out(count=600, classes=5, *, right=4.0, seed=0):
    """Calibrated logits: labels are drawn with the very probabilities that they give."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * right
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return LeftOut(logits, labels, "one", torch.ones(count, dtype=torch.bool))


def test_the_error_and_the_bins_equal_a_loop():
    found, error = left_out(300, right=1.0), 0.0
    likely = (1.7 * found.logits).softmax(1)
    for number in range(10):
        sure, guess = likely.max(1)
        inside = (sure > number / 10) & (sure <= (number + 1) / 10)
        if inside.any():
            right = (guess == found.labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - sure[inside].mean()).abs())
    bins = calibration_error(1.7 * found.logits, found.labels, 10)
    assert bins == pytest.approx(error, abs=1e-12)
    assert error > 0.01


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower():
    """Guo's bins are ((m - 1) / M, m / M]: 0.5 is in the first of two, 0.6 in the second."""
    logits = torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.float64).log()
    assert calibration_error(logits, torch.tensor([0, 1]), 2) == pytest.approx((0.5 + 0.6) / 2)


def test_calibrated_logits_have_a_small_error_and_flattened_ones_do_not():
    found = left_out(4000)
    assert calibration_error(found.logits, found.labels) < 0.02
    assert calibration_error(0.2 * found.logits, found.labels) > 0.2


@table("share", [0.0, 0.05, 0.15])
def test_the_share_of_wrong_labels_is_found(share):
    clean = left_out(2000)
    generator = torch.Generator().manual_seed(7)
    flipped = torch.rand(2000, generator=generator) < share
    moved = (clean.labels + 1 + torch.randint(4, (2000,), generator=generator)) % 5
    given = torch.where(flipped, moved, clean.labels)
    found = suspicious_labels(LeftOut(clean.logits, given, "one", clean.known))
    assert found.rate == pytest.approx(share, abs=0.025)
    # the probabilities are true: of labels said to be wrong with p, a share of p is
    assert float(found.wrong.sum()) == pytest.approx(float(flipped.sum()), abs=50)


def test_the_probability_is_bayes_rule():
    given = left_out(200)
    found = suspicious_labels(given)
    assert 0 < found.rate < 0.2
    order = found.rows(0.0)
    assert (found.wrong[order].diff() <= 0).all()
    assert len(found.rows(2.0)) == 0
    for row in (3, 50):
        others = [k for k in range(5) if k != int(given.labels[row])]
        assert int(found.likely[row]) == max(others, key=lambda k: float(given.logits[row, k]))


def test_planted_labels_among_handwriting_are_found(digits):
    features, labels = digits
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train = torch.cat([order[labels[order] == digit][:32] for digit in range(10)])
    given = labels[train].clone()
    planted = torch.arange(320) % 20 == 7
    given[planted] = (given[planted] + 3) % 10
    fit = fit_ridge(features[train] ** 2, given, 10)
    rows = suspicious_labels(fit.left_out).rows()
    hits = sum(bool(planted[row]) for row in rows)
    assert hits >= 0.7 * 16
    assert hits >= 0.7 * len(rows)


def test_images_that_could_not_be_left_out_are_not_suspected():
    given = left_out(100)
    known = torch.ones(100, dtype=torch.bool)
    known[:10] = False
    found = suspicious_labels(LeftOut(given.logits, (given.labels + 1) % 5, "block", known))
    assert (found.wrong[:10] == 0).all()


def test_too_few_images_and_several_labels_are_one_line():
    few = left_out(19)
    with pytest.raises(ResiDualError, match="wanted left-out predictions of 20 images or more"):
        suspicious_labels(few)
    with pytest.raises(ResiDualError, match="wanted one label per image, got several"):
        calibration_error(few.logits, torch.ones(19, 5))
