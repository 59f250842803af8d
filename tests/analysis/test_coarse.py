"""The coarse optimum against its own formula in float64, and on heads that are known to harm."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional

from residual_peft import ResiDualError
from residual_peft.analysis.coarse import _Problem, coarse_optimum
from tests.analysis.selection_case import CLASSES, case, classes, planted

SCALE, STRENGTH = 20.0, 0.03


@pytest.mark.parametrize("normalized", [False, True])
def test_value_and_gradient_are_those_of_the_formula(normalized: bool) -> None:
    one = case()
    heads = one.index()
    written = one.written[:, heads]
    gains = torch.linspace(-0.5, 2, len(heads), dtype=torch.float64, requires_grad=True)
    adapted = torch.einsum("u,nud->nd", gains, written)
    if normalized:
        adapted = functional.normalize(adapted, dim=-1)
    else:
        adapted = adapted / one.readout.norm(dim=1).mean()
    logits = SCALE * adapted @ classes().double().T
    loss = functional.cross_entropy(logits, one.labels)
    expected = loss + STRENGTH / 2 * (gains - 1).square().sum()
    expected.backward()
    problem = _Problem(one.seen.select(["head"]), classes(), SCALE)
    value, gradient = problem(gains.detach().numpy(), STRENGTH, normalized)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, gains.grad.numpy(), rtol=1e-3, atol=1e-5)
    assert float(gains.grad.norm()) > 0.1
    if normalized:  # gains near 0 are no way out: a readout of no length has its direction still
        small = problem(1e-8 * gains.detach().numpy(), 0.0, True)[0]
        assert small == pytest.approx(loss.item(), rel=1e-5)
        assert np.isfinite(problem(0 * gains.detach().numpy(), STRENGTH, True)[1]).all()


def test_blocks_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, gains = case().seen.select(["head"]), np.linspace(0, 1, 24)
    value, gradient = _Problem(seen, classes(), SCALE)(gains, STRENGTH, True)
    monkeypatch.setattr("residual_peft.analysis.coarse._BLOCK", 13)
    problem = _Problem(seen, classes(), SCALE)
    assert len(problem.parts) == 5
    again = problem(gains, STRENGTH, True)
    assert again[0] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(again[1], gradient, rtol=1e-5, atol=1e-7)


def test_the_convex_problem_has_one_optimum_and_it_is_found() -> None:
    """From starts far apart L-BFGS ends at the same gains; a fit on one ridge ends there, too."""
    train = planted({"layer0.head0": 0.2, "layer0.head1": -0.2}, count=80, heads=4, layers=1)
    problem, found = _Problem(train, classes(), SCALE), []
    for start in (np.full(4, -5.0), np.linspace(6, 0, 4)):
        options = {"ftol": 1e-14, "gtol": 1e-8}
        result = minimize(
            problem, start, (STRENGTH, False), method="L-BFGS-B", jac=True, options=options
        )
        found.append(result.x)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
    held_out = planted({"layer0.head0": 0.2, "layer0.head1": -0.2}, 1, heads=4, layers=1)
    fit = coarse_optimum(train, held_out, classes(), strengths=[STRENGTH], logit_scale=SCALE)
    assert fit.objective == "linear"
    np.testing.assert_allclose(fit.gains.numpy(), found[0], rtol=0, atol=1e-3)
    assert fit.gradient_norm < 1e-4


def test_heads_that_harm_are_turned_around() -> None:
    heads = {"layer0.head0": 0.6, "layer1.head1": -0.9}
    train, validation, test = (planted(heads, seed) for seed in range(3))
    found = coarse_optimum(train, validation, classes())
    gains = {row["unit"]: row["gain"] for row in found.rows()}
    assert gains["layer0.head0"] > 1
    assert gains["layer1.head1"] < -1
    before = (test.readout @ classes().T).argmax(-1) == test.labels
    after = found.correct(test, classes())
    assert float(before.float().mean()) < 1 / CLASSES
    assert float(after.float().mean()) > 0.9
    # what is counted is the argmax of the adapted readouts themselves
    adapted = sum(gain * test[name].full().double() for name, gain in gains.items())
    right = (adapted @ classes().double().T).argmax(-1) == test.labels
    assert after.equal(right)
    accuracy = float(found.correct(validation, classes()).float().mean())
    assert found.validation_accuracy == pytest.approx(accuracy)


def test_held_out_images_choose_between_the_ridges() -> None:
    heads = {"layer0.head0": 0.25}
    few, validation = planted(heads, 0, count=12), planted(heads, 1)
    each = {
        strength: coarse_optimum(few, validation, classes(), strengths=[strength])
        for strength in (10.0, 1e-4)
    }
    both = coarse_optimum(few, validation, classes(), strengths=[1e-4, 10.0])
    best = max(each.values(), key=lambda one: one.validation_accuracy)
    assert both.validation_accuracy >= best.validation_accuracy - 0.01
    assert len({one.validation_accuracy for one in each.values()}) == 2


def test_what_a_user_can_mend() -> None:
    seen = case().seen
    with pytest.raises(ResiDualError, match=r"strengths of the ridge above 0.*got \(\)"):
        coarse_optimum(seen, seen, classes(), strengths=[])
    with pytest.raises(ResiDualError, match=r"there is no optimum without\), got \(0\.0,\)"):
        coarse_optimum(seen, seen, classes(), strengths=[0.0])
    with pytest.raises(ResiDualError, match=r"labels from 0 to 2 \(3 classes\), got 4"):
        coarse_optimum(seen, seen, classes()[:3])
