"""A ridge without each part of its images, against fits anew in float64."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from residual_peft.classifiers.heads.jackknife_plus import PlusSets, RidgeWithout
from residual_peft.classifiers.heads.left_out import leaving_of
from residual_peft.classifiers.heads.ridge import fit_ridge
from residual_peft.errors import ResiDualError
from tests.pairs import table

SIZES = [((3, 4, 3), 20), ((33, 35, 34), 5)]
ROWS = [(*size, weighted) for size in SIZES for weighted in (False, True)]


@table(("sizes", "columns", "weighted"), ROWS)
def test_fits_without_a_part_are_those_of_fits_anew(drawn, ridge_twin, sizes, columns, weighted):
    draw = drawn(sizes, columns)
    options = {"zero_shot": draw.zero_shot, "residual": weighted}
    groups = torch.arange(len(draw.labels)) // 2 if weighted else None
    options |= {"class_weights": [2.0, 1.0, 0.5] if weighted else None, "groups": groups}
    leave = None if weighted else "one"  # of few images, not what would be left out by itself
    fit = fit_ridge(draw.features, draw.labels, 3, leave=leave, **options)
    assert bool(fit.prior) == weighted
    options.pop("residual")
    made = RidgeWithout.of(fit, draw.features, draw.labels, 3, **options)
    without = RidgeWithout.from_state(made.state())
    new = drawn((4, 4, 4), columns, seed=5)
    targets = torch.eye(3, dtype=torch.float64)[draw.labels]
    if weighted:
        targets = targets - (fit.prior * draw.zero_shot).softmax(1)
    weights = torch.ones(len(draw.labels), dtype=torch.float64)
    if weighted:
        weights = torch.tensor([2.0, 1.0, 0.5]).double()[draw.labels]
        weights = weights / weights.mean()
    parts = leaving_of(draw.labels, 3, groups, leave).parts
    for number, (part, logits) in enumerate(without.logits(new.features, new.zero_shot)):
        assert torch.equal(part, parts[number])
        if number % 9:
            continue
        kept = torch.ones(len(draw.labels), dtype=torch.bool)
        kept[part] = False
        x, y, w = draw.features[kept], targets[kept], weights[kept]
        scores = ridge_twin(x, y, w, fit.head.mean, fit.head.scale, fit.alpha)
        expected = fit.head.temperature * scores(new.features)
        expected = expected + fit.head.text_weight * new.zero_shot
        np.testing.assert_allclose(logits, expected, rtol=1e-7, atol=1e-8)


def test_sets_equal_a_loop_and_read_their_own_columns(drawn):
    draw, new = drawn((5, 5, 6), 12), drawn((3, 3, 3), 12, seed=2)
    fit = fit_ridge(draw.features, draw.labels, 3)
    columns = torch.arange(1, 25, 2)
    without = RidgeWithout.of(fit, draw.features, draw.labels, 3, columns=columns)
    wide = torch.randn(9, 30).double()
    wide[:, columns] = new.features
    sets = PlusSets.of(without, 0.8)
    assert sets.told == "by jackknife+ of 16 training images"
    own = -fit.left_out.logits.log_softmax(1)
    above = np.zeros((9, 3))
    for part, logits in without.logits(wide):
        for row in part.tolist():
            for image in range(9):
                for k in range(3):
                    score = -logits[image].log_softmax(0)[k]
                    above[image, k] += float(own[row, draw.labels[row]]) < float(score)
    np.testing.assert_array_equal(sets.sets(wide), above < 0.8 * 17)


WRONG = {
    "features": lambda t: t[:, :-1],
    "columns": lambda t: t.flip(0),
    "scale": lambda t: -t,
    "weights": lambda t: t * 0,
    "errors": lambda t: t * torch.nan,
    "targets": lambda t: t[0],
    "part": lambda t: t + 1000,
    "numbers": lambda t: t[:2],
    "scores": lambda t: t.long(),
}


@table("name", WRONG)
def test_what_was_not_saved_like_that_is_refused(drawn, name):
    draw = drawn((5, 5, 6), 12)
    fit = fit_ridge(draw.features, draw.labels, 3)
    state = RidgeWithout.of(fit, draw.features, draw.labels, 3).state()
    assert set(state) == {field.name for field in fields(RidgeWithout)}
    with pytest.raises(ResiDualError, match="wanted"):
        RidgeWithout.from_state(state | {name: WRONG[name](state[name])})
    state.pop(name)
    with pytest.raises(ResiDualError, match="wanted the tensors features, columns"):
        RidgeWithout.from_state(state)


def test_what_has_no_fits_without_an_image_is_one_line(drawn):
    draw = drawn((1, 1, 1), 12)
    fit = fit_ridge(draw.features, draw.labels, 3)
    with pytest.raises(ResiDualError, match="two or more images of each class"):
        RidgeWithout.of(fit, draw.features, draw.labels, 3)
    draw, groups = drawn((3, 3, 3), 12), torch.arange(9) // 2
    fit = fit_ridge(draw.features, draw.labels, 3, groups=groups)
    with pytest.raises(ResiDualError, match=r"groups that the fit left out .* got none: give"):
        RidgeWithout.of(fit, draw.features, draw.labels, 3)
