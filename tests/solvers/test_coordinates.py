import pytest
import torch
from peft import get_peft_model
from schedulefree import AdamWScheduleFree
from torch.nn import functional

from residual_peft.data import batches
from residual_peft.data.metrics import accuracy
from residual_peft.errors import ResiDualError
from residual_peft.solvers import fit_gains, fit_linear, linear_readout
from residual_peft.solvers.coordinates import (
    collect_coordinates,
    collect_readouts,
    collect_with_basis,
)
from residual_peft.towers.registry import base_model
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_of
from tests.models import BUILDERS, clip_model, clip_vision_model_with_projection, pixels
from tests.pairs import table
from tests.tokenizers import VOCABULARY
from tests.training_case import adapted_classifier, task

CONFIGS = {
    "default": ResiDualConfig(),
    "heads": ResiDualConfig(units="head", components=3),
    "residual": ResiDualConfig.paper("residual"),
    "residual_star": ResiDualConfig.paper("residual_star"),
    "coarse": ResiDualConfig.paper("coarse"),
    "rd_y": ResiDualConfig.paper("rd_y"),
    "kept, not restored": ResiDualConfig(restore_mean=False, gain_init="normal"),
}


def random_gains(model, seed=0):
    gains = gains_of(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        gains.copy_(1 + torch.randn(gains.shape, generator=generator))
    return gains


def some_batches(count=7, classes=3):
    labels = torch.arange(count) % classes
    return [
        {"pixel_values": p, "labels": y}
        for p, y in zip(pixels(count).split(3), labels.split(3), strict=True)
    ]


def passed(classifier, split="train"):
    data = task()
    loader = batches(data[split], classifier.image_processor, batch_size=16)
    return collect_coordinates(classifier.model, loader)


@table("config", CONFIGS.values(), ids=CONFIGS)
def test_readouts_from_coordinates_are_those_of_the_adapted_model(config):
    classifier = adapted_classifier(config)
    gains = random_gains(classifier.model)
    found = collect_coordinates(classifier.model, some_batches())
    assert len(found) == 7
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    with torch.no_grad():
        expected = run_tower(classifier.model, pixels(7))
    torch.testing.assert_close(found.adapted(gains), expected, atol=2e-5, rtol=2e-5)
    index = torch.tensor([5, 0])
    torch.testing.assert_close(
        found.rows(index).adapted(gains), expected[index], atol=2e-5, rtol=2e-5
    )
    assert found.to("cpu").rows(index).labels.tolist() == [2, 0]


@table("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_of_the_gains_equal_those_of_the_model_in_float64(config):
    model = clip_model(vocab_size=VOCABULARY).double()
    classifier = adapted_classifier(config, model)
    gains, labels = random_gains(classifier.model), torch.arange(7) % 3
    gains.requires_grad_()
    outputs = classifier.model(pixel_values=pixels(7).double())
    classifier.loss(outputs, labels).backward()
    expected = gains.grad.clone()
    assert expected.abs().min() >= 0
    assert expected.abs().max() > 1e-3
    double = [{**b, "pixel_values": b["pixel_values"].double()} for b in some_batches()]
    found = collect_coordinates(classifier.model, double)
    own = gains.detach().clone().requires_grad_()
    classifier.loss(found.adapted(own), labels).backward()
    torch.testing.assert_close(own.grad, expected, atol=1e-7, rtol=1e-6)


@table("config", CONFIGS.values(), ids=CONFIGS)
def test_bases_and_coordinates_in_one_pass_are_those_of_two(config):
    two = adapted_classifier(config).model
    fit_bases(two, some_batches(40))
    expected = collect_coordinates(two, some_batches(40))
    one, passes = adapted_classifier(config).model, []
    random_gains(one)  # restarted, as by fit_bases
    handle = base_model(one).vision_model.register_forward_hook(lambda *_: passes.append(1))
    found = collect_with_basis(one, some_batches(40))
    handle.remove()
    assert len(passes) == len(some_batches(40))
    assert torch.equal(gains_of(one), gains_of(two))
    torch.testing.assert_close(found.readout, expected.readout)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.coordinates, expected.coordinates, atol=1e-6, rtol=1e-5)
    assert found.state.settings == expected.state.settings
    torch.testing.assert_close(found.state.directions, expected.state.directions)
    gains = random_gains(one)
    with torch.no_grad():
        torch.testing.assert_close(
            found.adapted(gains)[:7], run_tower(one, pixels(40)[:7]), atol=2e-5, rtol=2e-5
        )


def test_one_pass_in_stream_mode_is_refused_before_an_image_is_read():
    model = adapted_classifier(ResiDualConfig(mode="stream")).model
    with pytest.raises(ResiDualError, match="is in stream mode"):
        collect_with_basis(model, iter(()))


def test_the_readouts_collected_are_the_unadapted_models():
    classifier = adapted_classifier()
    random_gains(classifier.model)
    with torch.no_grad():
        expected = run_tower(clip_model(vocab_size=VOCABULARY), pixels(7))
    for found in (
        collect_readouts(classifier.model, some_batches()),
        collect_coordinates(classifier.model, some_batches()),
        collect_readouts(clip_model(vocab_size=VOCABULARY), some_batches()),
    ):
        torch.testing.assert_close(found.readout, expected)


def test_collecting_takes_the_named_adapter_and_leaves_the_model_as_it_was():
    classifier = adapted_classifier()
    model = classifier.model
    model.add_adapter("other", ResiDualConfig(units="mlp"))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    model.train()
    found = collect_coordinates(model, some_batches(), adapter_name="other")
    assert {unit.kind for unit in found.state.settings.units} == {"mlp"}
    assert model.training
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@table(
    ("given", "message"),
    [
        ([], "at least one batch of images, got none"),
        ([pixels(2)], "got no labels"),
        ([{"labels": torch.zeros(2)}], "no 'pixel_values'"),
        ([{"pixel_values": pixels(2) / 0, "labels": torch.zeros(2)}], "NaN or infinite values"),
    ],
)
def test_bad_batches_are_refused(given, message):
    for collect in (collect_coordinates, collect_readouts, collect_with_basis):
        with pytest.raises(ResiDualError, match=message):
            collect(adapted_classifier().model, given)


def test_progress_counts_images():
    seen = []
    collect_readouts(adapted_classifier().model, some_batches(), progress=seen.append)
    assert seen == [3, 3, 1]


def slow_fit(classifier, train, validation, parameters, adapted, lr, epochs, seed):
    """The same training written out, with the whole history of averaged parameters."""
    optimizer = AdamWScheduleFree(parameters, lr=lr, foreach=False)
    generator = torch.Generator().manual_seed(seed)
    weights, history = classifier.class_embeddings, []

    def seen() -> None:
        with torch.no_grad():
            y = adapted(validation)
            share = (y @ weights.T).argmax(1).eq(validation.labels).float().mean().item()
        history.append((share, [p.detach().clone() for p in parameters]))

    seen()  # the start is a candidate, too
    for _ in range(epochs):
        optimizer.train()
        for index in torch.randperm(len(train), generator=generator).split(16):
            y = adapted(train)[index]
            logits = classifier.logit_scale * (y / y.norm(dim=1, keepdim=True)) @ weights.T
            optimizer.zero_grad()
            functional.cross_entropy(logits, train.labels[index]).backward()
            optimizer.step()
        optimizer.eval()
        seen()
    return history


@pytest.mark.parametrize("name", ["default", "coarse", "residual_star"])
def test_fitted_gains_are_those_of_a_plain_loop_at_its_best_epoch(name):
    classifier = adapted_classifier(CONFIGS[name])
    train, validation = passed(classifier), passed(classifier, "validation")
    gains = gains_of(classifier.model).detach().clone().requires_grad_()
    slow = slow_fit(
        classifier, train, validation, [gains], lambda r: r.adapted(gains), 0.05, 6, seed=3
    )
    fit = fit_gains(
        classifier,
        train,
        validation,
        learning_rate=0.05,
        batch_size=16,
        epochs=6,
        patience=None,
        seed=3,
    )
    best = max(range(7), key=lambda e: (slow[e][0], -e))
    assert fit.best_epoch == best
    assert fit.accuracy == pytest.approx(slow[best][0])
    assert [r["accuracy"] for r in fit.history] == pytest.approx([s for s, _ in slow[1:]])
    torch.testing.assert_close(fit.gains, slow[best][1][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gains_of(classifier.model).detach(), fit.gains, atol=0, rtol=0)


def test_fitting_learns_and_reports_the_models_own_accuracy():
    classifier = adapted_classifier()
    train, validation = passed(classifier), passed(classifier, "validation")
    before = accuracy(classifier.logits(train.adapted(gains_of(classifier.model))), train.labels)
    fit = fit_gains(classifier, train, validation, learning_rate=0.1, batch_size=16)
    after = accuracy(classifier.logits(train.adapted(fit.gains)), train.labels)
    assert after > before + 0.2
    assert fit.history[-1]["loss"] < fit.history[0]["loss"]
    assert fit.seconds > 0
    loader = batches(task().validation, classifier.image_processor)
    with torch.no_grad():
        logits = torch.cat(
            [classifier.logits(classifier.model(pixel_values=b["pixel_values"])) for b in loader]
        )
    assert accuracy(logits, validation.labels) == fit.accuracy


def test_fitting_is_seeded_and_starts_where_it_is_told():
    classifier = adapted_classifier()
    train = passed(classifier)
    start = torch.ones_like(gains_of(classifier.model))
    fits = [
        fit_gains(classifier, train, start=start, epochs=2, batch_size=16, seed=seed)
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(fits[0].gains, fits[1].gains, atol=0, rtol=0)
    assert not torch.equal(fits[0].gains, fits[2].gains)
    assert fits[0].best_epoch == 2
    assert fits[0].accuracy is None
    assert start.eq(1).all()


def test_fitting_stops_when_the_accuracy_does_not_improve():
    classifier = adapted_classifier()
    train, validation = passed(classifier), passed(classifier, "validation")
    fit = fit_gains(classifier, train, validation, learning_rate=1e-6, epochs=20, patience=3)
    assert len(fit.history) == fit.best_epoch + 3 == 3
    # nothing was better than the start, so the gains are what they were
    assert fit.gains.eq(1).all()
    unadapted = classifier.logits(validation.readout)
    assert fit.accuracy == accuracy(unadapted, validation.labels)


def test_bad_fits_are_refused():
    classifier, other = adapted_classifier(), adapted_classifier(ResiDualConfig(units="head"))
    train = passed(classifier)
    with pytest.raises(ResiDualError, match=r"are of an adapter with \d+ gains, this one has"):
        fit_gains(other, train)
    with pytest.raises(ResiDualError, match="gains to start at, got"):
        fit_gains(classifier, train, start=torch.ones(2))
    for name in ("learning_rate", "batch_size", "epochs"):
        with pytest.raises(ResiDualError, match=f"wanted {name} above 0, got 0"):
            fit_gains(classifier, train, **{name: 0})
    with pytest.raises(ResiDualError, match="wanted patience"):
        fit_gains(classifier, train, patience=0)
    train.labels[1] = -1
    with pytest.raises(ResiDualError, match="got -1 for image 1"):
        fit_gains(classifier, train)


def test_the_linear_baseline_starts_at_the_identity_and_equals_a_plain_loop():
    classifier = adapted_classifier()
    train, validation = passed(classifier), passed(classifier, "validation")
    weight, bias = torch.eye(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    slow = slow_fit(
        classifier,
        train,
        validation,
        [weight, bias],
        lambda r: r.readout @ weight.T + bias,
        0.01,
        5,
        seed=0,
    )
    fit = fit_linear(
        classifier, train, validation, learning_rate=0.01, batch_size=16, epochs=5, patience=None
    )
    best = max(range(5), key=lambda e: (slow[e][0], -e))
    torch.testing.assert_close(fit.parameters["weight"], slow[best][1][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fit.parameters["bias"], slow[best][1][1], atol=1e-5, rtol=1e-5)
    expected = train.readout @ fit.parameters["weight"].T + fit.parameters["bias"]
    torch.testing.assert_close(linear_readout(fit, train.readout), expected)
    still = fit_linear(classifier, train, epochs=1, learning_rate=1e-12)
    torch.testing.assert_close(linear_readout(still, train.readout), train.readout)


@table("name", BUILDERS)
def test_every_clip_class_has_coordinates(name):
    adapted = get_peft_model(BUILDERS[name](), ResiDualConfig())
    gains = random_gains(adapted)
    found = collect_coordinates(adapted, some_batches())
    with torch.no_grad():
        expected = run_tower(adapted, pixels(7))
    torch.testing.assert_close(found.adapted(gains), expected, atol=3e-5, rtol=3e-5)


def test_half_precision_models_give_float32_coordinates():
    model = clip_vision_model_with_projection().to(torch.bfloat16)
    found = collect_coordinates(get_peft_model(model, ResiDualConfig()), some_batches())
    assert found.coordinates.dtype == found.readout.dtype == torch.float32
