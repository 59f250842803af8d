import pytest
import torch

from residual_peft.classifiers.heads.learning_curve import learning_curve
from residual_peft.classifiers.heads.ridge import fit_ridge
from residual_peft.errors import ResiDualError


@pytest.mark.parametrize(("floor", "height", "exponent"), [(0.0, 0.1, 0.9), (0.1, 0.1, 0.6)])
def test_a_power_law_is_found_and_continued(floor, height, exponent):
    count = 4000
    labels = torch.arange(count) % 5

    def accuracy_of(inside, outside):
        assert not torch.isin(inside, outside).any()
        return 1 - floor - height * (len(inside) / count) ** -exponent

    fractions = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
    curve = learning_curve(accuracy_of, 1 - floor - height, labels, 5, fractions=fractions, draws=2)
    expected = 1 - floor - height * 2**-exponent
    assert curve.at(2 * count) == pytest.approx(expected, abs=0.006)
    assert curve.gain(count) == pytest.approx(expected - (1 - floor - height), abs=0.006)
    assert curve.images.tolist() == [5 * round(800 * share) for share in (*fractions, 1)]


def test_handwriting_gets_better_as_it_says(digits):
    features, labels = digits
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    ranked = [order[labels[order] == digit] for digit in range(10)]
    test = torch.cat([rows[120:] for rows in ranked])

    def right(train, rows, given=labels):
        head = fit_ridge(features[train], given[train], 10).head
        guesses = head.logits(features[rows]).argmax(1)
        return float((guesses == labels[rows]).double().mean())

    few = torch.cat([rows[:16] for rows in ranked])
    own = labels[few]
    left_out = fit_ridge(features[few], own, 10).left_out.accuracy
    curve = learning_curve(lambda a, b: right(few[a], few[b]), left_out, own, 10, draws=3)
    more = torch.cat([rows[:64] for rows in ranked])
    assert curve.at(640) == pytest.approx(right(more, test), abs=0.03)


def test_few_images_are_one_line():
    with pytest.raises(
        ResiDualError, match="wanted 40 images or more for a learning curve, got 39"
    ):
        learning_curve(lambda a, b: 1.0, 1.0, torch.arange(39) % 2, 2)
    with pytest.raises(ResiDualError, match="wanted one label per image, got several labels"):
        learning_curve(lambda a, b: 1.0, 1.0, torch.ones(40, 2), 2)
