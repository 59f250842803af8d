"""The deterministic solver, the objectives' gradients and the path of strengths."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from residual_peft.data import batches
from residual_peft.errors import ResiDualError
from residual_peft.solvers import few_shot, fit_gains, solve_gains, strength_path
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.objectives import GainProblem, Objective
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.pairs import dealt, table
from tests.training_case import adapted_classifier, passed, task

CONFIGS = {
    "default": ResiDualConfig(),
    "coarse": ResiDualConfig.paper("coarse"),
    "residual_star": ResiDualConfig.paper("residual_star"),
    "rd_y": ResiDualConfig.paper("rd_y"),
}
OBJECTIVES = {
    "plain": Objective(),
    "linear": Objective(normalized=False, strength=0.01),
    "weighted": Objective(class_weights=(0.5, 2.0, 1.3), label_smoothing=0.1, strength=0.3),
    "balanced": Objective(normalized=False, class_weights="balanced", weighting=1.0, strength=1.0),
    "plain ridge": Objective(strength=0.1, weighting=0.0),
    "sigmoid": Objective(loss="sigmoid", strength=0.02),
    "sigmoid, linear": Objective(loss="sigmoid", normalized=False, class_weights=(1.0, 3.0, 0.2)),
}


def fitted(config=None):
    classifier = adapted_classifier(config)
    fit_bases(classifier.model, batches(task().train, classifier.image_processor, batch_size=16))
    return classifier


def with_labels_for(objective, rows):
    if not objective.labelling.multi_label:
        return rows
    generator = torch.Generator().manual_seed(0)
    labels = functional.one_hot(rows.labels, 3) | (
        torch.rand(len(rows), 3, generator=generator) < 0.3
    )
    return type(rows)(rows.readout, labels.long(), rows.coordinates, rows.state)


def slow_value(classifier, rows, objective, gains, bias):
    """The objective image by image and unit by unit, float64."""
    state, unit_of, k = rows.state, [], 0
    for index, count in enumerate(state.counts):
        unit_of += [index] * count
    y = rows.readout.double() if state.settings.keep else torch.zeros_like(rows.readout).double()
    y = y + state.constant.double()
    scales = torch.zeros(len(gains), dtype=torch.float64)
    for k in range(len(state.directions)):
        gain = unit_of[k] if state.settings.per_unit else k
        c = rows.coordinates[:, k].double()
        scales[gain] += (c**2).mean()
        y = y + (gains[gain] - state.settings.neutral) * torch.outer(
            c, state.directions[k].double()
        )
    length = rows.readout.double().norm(dim=1).mean()
    y = y / y.norm(dim=1, keepdim=True) if objective.normalized else y / length
    logits = classifier.logit_scale * y @ classifier.class_embeddings.double().T
    weights = objective.class_weights
    if weights == "balanced":
        weights = [len(rows) / (3 * int((rows.labels == c).sum())) for c in range(3)]
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    if objective.labelling.multi_label:
        loss = functional.binary_cross_entropy_with_logits(
            logits + bias, rows.labels.double(), pos_weight=weights
        )
    else:
        loss = functional.cross_entropy(
            logits, rows.labels, weights, label_smoothing=objective.label_smoothing
        )
    penalty = ((scales / scales.mean()).clamp_min(1e-3) ** objective.weighting) * (gains - 1) ** 2
    return loss + objective.strength / 2 * penalty.sum()


@table(("config", "objective"), dealt(CONFIGS.values(), OBJECTIVES.values()))
def test_value_and_gradient_are_those_of_a_slow_twin(config, objective, monkeypatch):
    monkeypatch.setattr("residual_peft.solvers.objectives.CHUNK", 11)
    classifier = fitted(config)
    rows = with_labels_for(objective, passed(classifier))
    problem = GainProblem(classifier, rows, objective, torch.float64)
    gains = torch.randn(rows.state.gains.number, dtype=torch.float64) * 0.5 + 1
    gains.requires_grad_()
    bias = torch.tensor(-0.7 if objective.labelling.multi_label else 0.0, requires_grad=True)
    expected = slow_value(classifier, rows, objective, gains, bias.double())
    expected.backward()
    value, gradient, slope = problem.value_and_gradient(gains.detach(), bias.item())
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert gains.grad.norm() > 1e-3
    torch.testing.assert_close(gradient, gains.grad, atol=2e-6, rtol=2e-5)
    if objective.labelling.multi_label:
        assert slope == pytest.approx(float(bias.grad), rel=1e-5)


@table("config", CONFIGS.values(), ids=CONFIGS)
def test_the_gradient_is_the_trainers(config):
    """One backward pass through the adapted model itself, as the Trainer makes it."""
    classifier = fitted(config)
    data = task()
    loader = batches(data.train, classifier.image_processor, batch_size=len(data.train))
    rows = collect_coordinates(classifier.model, loader)
    gains = gains_of(classifier.model)
    with torch.no_grad():
        gains += 0.3 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(1))
    (batch,) = loader
    outputs = classifier.model(pixel_values=batch["pixel_values"])
    classifier.loss(outputs, batch["labels"]).backward()
    problem = GainProblem(classifier, rows, Objective(), torch.float64)
    _, gradient, _ = problem.value_and_gradient(gains.detach())
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(gradient.float(), gains.grad, atol=1e-5, rtol=1e-3)


@table("objective", OBJECTIVES)
def test_another_strength_and_what_is_kept_change_nothing_else(objective, monkeypatch):
    classifier = fitted()
    settings = OBJECTIVES[objective]
    rows = with_labels_for(settings, passed(classifier))
    gains = 1 + torch.randn(rows.state.gains.number)
    problem = GainProblem(classifier, rows, settings)
    problem.value_and_gradient(gains)  # what no gain changes is kept now
    other = problem.with_strength(0.7)
    fresh = GainProblem(classifier, rows, replace(settings, strength=0.7))
    monkeypatch.setattr("residual_peft.solvers.objectives.KEPT", 0)
    bare = GainProblem(classifier, rows, replace(settings, strength=0.7))
    values = [p.value_and_gradient(gains, 0.3) for p in (other, fresh, bare, bare)]
    for value, gradient, slope in values[1:]:
        assert value == values[0][0]
        assert torch.equal(gradient, values[0][1])
        assert slope == values[0][2]
    assert not bare.kept
    assert problem.objective == settings


def test_the_convex_objective_has_one_optimum_wherever_it_starts():
    classifier = fitted()
    rows = passed(classifier)
    objective = Objective(normalized=False, strength=0.01)
    starts = [None, torch.randn(rows.state.gains.number), torch.zeros(rows.state.gains.number)]
    fits = [
        solve_gains(classifier, rows, objective=objective, start=start, tolerance=1e-9)
        for start in starts
    ]
    for fit in fits:
        assert fit.gradient_norm < 1e-8
        torch.testing.assert_close(fit.gains, fits[0].gains, atol=1e-6, rtol=1e-6)
    again = solve_gains(classifier, rows, objective=objective, tolerance=1e-9)
    assert torch.equal(again.gains, fits[0].gains)
    assert torch.equal(gains_of(classifier.model).detach(), again.gains)
    assert (fits[0].gains - 1).abs().max() > 0.05
    problem = GainProblem(classifier, rows, objective, torch.float64)
    best = problem.value_and_gradient(fits[0].gains)[0]
    for _ in range(5):
        other = fits[0].gains + 0.01 * torch.randn(rows.state.gains.number)
        assert problem.value_and_gradient(other)[0] > best


def test_a_fit_needs_no_gradients_of_others():
    """A notebook may have turned them off, for all that follows."""
    classifier = fitted()
    rows = passed(classifier)
    settings = {"objective": Objective(normalized=False, strength=0.01)}
    short = {**settings, "epochs": 2, "learning_rate": 0.1}
    solved, trained = (
        solve_gains(classifier, rows, **settings),
        fit_gains(classifier, rows, **short),
    )
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(solve_gains(classifier, rows, **settings).gains, solved.gains)
            assert torch.equal(fit_gains(classifier, rows, **short).gains, trained.gains)


def test_the_convex_optimum_is_newtons():
    """Full Newton steps with the exact Hessian, float64, on the slow twin."""
    classifier = fitted(ResiDualConfig(units="head", components=2))
    rows = passed(classifier)
    objective = Objective(normalized=False, strength=0.05, class_weights="balanced")
    gains = torch.ones(rows.state.gains.number, dtype=torch.float64)

    def value(at):
        return slow_value(classifier, rows, objective, at, 0.0)

    for _ in range(8):
        gradient = torch.autograd.functional.jacobian(value, gains)
        hessian = torch.autograd.functional.hessian(value, gains)
        gains = gains - torch.linalg.solve(hessian, gradient)
    assert gradient.norm() < 1e-9
    fit = solve_gains(classifier, rows, objective=objective, tolerance=1e-9)
    torch.testing.assert_close(fit.gains, gains.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_lbfgs_betters_adamw_on_the_same_objective(objective):
    classifier = fitted()
    rows = with_labels_for(objective, passed(classifier))
    problem = GainProblem(classifier, rows, objective)
    solved = solve_gains(classifier, rows, rows, objective=objective, max_iterations=200)
    assert 0 <= solved.accuracy <= 1
    bias = float(solved.parameters.get("logit_bias", 0.0))
    best = problem.value_and_gradient(solved.gains, bias)[0]
    start = problem.value_and_gradient(torch.ones_like(solved.gains), bias)[0]
    fit = fit_gains(
        classifier,
        rows,
        objective=objective,
        start=torch.ones_like(solved.gains),
        learning_rate=0.1,
        batch_size=16,
        epochs=30,
    )
    bias = float(fit.parameters.get("logit_bias", 0.0))
    reached = problem.value_and_gradient(fit.gains, bias)[0]
    assert best <= reached + 1e-6
    assert reached < start
    assert solved.history[-1]["gradient_norm"] == solved.gradient_norm
    assert solved.history[0]["loss"] > solved.history[-1]["loss"]


def test_a_path_of_strengths_on_held_out_images_and_by_cross_validation():
    classifier = fitted()
    before = gains_of(classifier.model).detach().clone()
    train, validation = passed(classifier), passed(classifier, "validation")
    strengths = (1e-3, 1e3, 1e-1)
    path = strength_path(classifier, train, validation, strengths=strengths)
    assert path.strengths == (1e3, 1e-1, 1e-3)
    assert path.accuracy.shape == path.loss.shape == (1, 3)
    assert torch.equal(gains_of(classifier.model).detach(), before)
    for index, strength in enumerate(path.strengths):
        fit = solve_gains(
            classifier, train, validation, objective=Objective(strength=strength), tolerance=1e-4
        )
        assert fit.accuracy == pytest.approx(float(path.accuracy[0, index]), abs=0.1)
    folded = strength_path(classifier, train, strengths=strengths, folds=3)
    assert folded.accuracy.shape == (3, 3)
    again = strength_path(classifier, train, strengths=strengths, folds=3)
    assert torch.equal(folded.loss, again.loss)
    assert folded.best != 1e3  # which freezes everything
    assert folded.accuracy.mean(0).max() > 0.5


def test_few_shots_are_so_many_of_each_class():
    rows = passed(adapted_classifier())
    for shots in (1, 2, 4, 8):
        some = few_shot(rows, shots, seed=3)
        assert torch.bincount(some.labels).tolist() == [shots] * 3
        assert torch.equal(some.coordinates, few_shot(rows, shots, seed=3).coordinates)
    assert not torch.equal(few_shot(rows, 4, 0).readout, few_shot(rows, 4, 1).readout)
    with pytest.raises(ResiDualError, match="wanted 1000 images per class, class 0 has"):
        few_shot(rows, 1000)


def test_bad_objectives_and_labels_are_refused():
    classifier = adapted_classifier()
    rows = passed(classifier)
    for options, message in (
        ({"loss": "hinge"}, "'softmax' or 'sigmoid', got 'hinge'"),
        ({"class_weights": "even"}, "'balanced', numbers or None, got 'even'"),
        ({"label_smoothing": 1.0}, "from 0 to below 1, got 1.0"),
        ({"label_smoothing": 0.1, "loss": "sigmoid"}, "\\(loss='softmax'\\) only: leave"),
        ({"strength": -1.0}, "strength of 0 or more, got -1.0"),
    ):
        with pytest.raises(ResiDualError, match=message):
            Objective(**options)
    for objective, message in (
        (Objective(class_weights=(1.0, 2.0)), "wanted 3 class weights above 0"),
        (Objective(class_weights=(1.0, 2.0, 0.0)), "wanted 3 class weights above 0"),
        (Objective(loss="sigmoid"), r"labels of shape \(N, 3\)"),
    ):
        with pytest.raises(ResiDualError, match=message):
            solve_gains(classifier, rows, objective=objective)
        with pytest.raises(ResiDualError, match=message):
            fit_gains(classifier, rows, objective=objective)
    with pytest.raises(ResiDualError, match="got none"):
        strength_path(classifier, rows, strengths=())
    with pytest.raises(ResiDualError, match="folds=100 and 12 images of the rarest class"):
        strength_path(classifier, rows, folds=100)
    with pytest.raises(ResiDualError, match="wanted at least two folds, got folds=1"):
        strength_path(classifier, rows, folds=1)
    with pytest.raises(ResiDualError, match="wanted a tolerance above 0"):
        solve_gains(classifier, rows, tolerance=0)
    with pytest.raises(ResiDualError, match="needs images of every class"):
        solve_gains(
            classifier, rows.rows(rows.labels > 0), objective=Objective(class_weights="balanced")
        )
