"""Gains and maps from coordinates: of other adapters exactly, turned to the classes, on a line."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from residual_peft.bases.decomposition import decompose
from residual_peft.classifiers.heads.calibrating import calibrate
from residual_peft.data import batches
from residual_peft.experiments.bench.descent import HELD_OUT, Training
from residual_peft.experiments.bench.encoding import Pair
from residual_peft.experiments.bench.others import another_adapter
from residual_peft.experiments.bench.readouts import (
    LINE,
    READOUTS,
    output_basis,
    own_basis,
    text_basis,
)
from residual_peft.solvers.coordinates import collect_coordinates
from residual_peft.solvers.methods import METHODS
from residual_peft.tuner import ResiDualConfig
from tests.experiments.bench.case import few, small_registry, tiny_pair

OTHERS = {
    "residual": (ResiDualConfig.paper("residual"), own_basis),
    "residual_star": (ResiDualConfig.paper("residual_star"), own_basis),
    "coarse": (ResiDualConfig.paper("coarse"), lambda rows: None),
    "rd_y": (ResiDualConfig.paper("rd_y"), output_basis),
    "text": (ResiDualConfig(), text_basis),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("readouts")
    registry = small_registry(folder)
    own = tiny_pair(replace(registry, basis="own"), folder / "own")
    return {"weights": tiny_pair(registry, folder / "weights"), "own": own}


def test_coordinates_of_another_adapter_are_those_of_a_pass_with_it(pairs) -> None:
    """Embeddings at random gains, too; whole heads are exact where the bases are of images."""
    for basis, pair in pairs.items():
        as_by_a_pass(pair, basis)
    spans_of_weights(pairs["weights"])


def as_by_a_pass(pair: Pair, basis: str) -> None:
    rows = few(pair).rows
    model, generator = rows.classifier.model, torch.Generator().manual_seed(0)
    images = batches(pair.images.test, pair.tower.backbone.image_processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, (config, basis_of) in OTHERS.items():
        if (basis, name) == ("weights", "coarse"):
            continue
        with another_adapter(rows, config, basis_of(rows)) as other:
            passed = collect_coordinates(model, images)
        ours = other(pair.test)
        assert ours.state.settings == passed.state.settings
        torch.testing.assert_close(ours.coordinates, passed.coordinates, rtol=1e-4, atol=1e-4)
        gains = torch.randn(ours.state.gains.number, generator=generator)
        torch.testing.assert_close(
            ours.adapted(gains), passed.adapted(gains), rtol=1e-4, atol=1e-3, msg=name
        )
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def spans_of_weights(pair: Pair) -> None:
    """Whole heads in bases of weights are what these span."""
    rows = few(pair).rows
    (batch,) = batches(pair.images.test, pair.tower.backbone.image_processor)
    with another_adapter(rows, ResiDualConfig.paper("coarse"), None) as other:
        pass
    ours = other(pair.test)
    basis, parts = own_basis(rows), decompose(rows.classifier.model, batch["pixel_values"])
    expected = torch.zeros_like(ours.readout)
    gains = torch.linspace(-1, 2, ours.state.gains.number)
    for gain, unit in zip(gains, ours.state.settings.units, strict=True):
        contribution = parts.contributions[:, parts.units.index(unit)]
        frame = basis[unit].components
        expected += gain * contribution @ frame.T @ frame
    torch.testing.assert_close(ours.adapted(gains), expected, rtol=1e-4, atol=1e-4)


def test_bases_turned_to_the_classes_lose_no_class(pairs) -> None:
    for pair in pairs.values():
        rows = few(pair).rows
        first, turned = own_basis(rows), text_basis(rows)
        classes = rows.classifier.class_embeddings
        for old, new in zip(first.components, turned.components, strict=True):
            assert len(new) == min(len(old), len(classes)) < len(old)
            torch.testing.assert_close(new @ new.T, torch.eye(len(new)), atol=1e-5, rtol=0)
            whole, part = classes @ old.T @ old, classes @ new.T @ new
            torch.testing.assert_close(part, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [list(READOUTS)[:3], list(READOUTS)[3:]])
def test_they_learn_and_new_texts_can_be_asked(pairs, names: list[str]) -> None:
    """What is trained is counted; embeddings lead to the logits that are given."""
    for name in names:
        learns(pairs["weights"], name)


def learns(pair: Pair, name: str) -> None:
    given = few(pair)
    rows, data = given.rows, given.test.data
    training = Training(rows, given.learned, 0)
    fitted = READOUTS[name](training)
    counts = {"coarse": 4, "rd-y": 16, "lin": 16 * 17, "gains-text-basis": 6 * 4}
    whole = rows.data.state.gains.number
    if name == "residual-star":
        assert 4 <= fitted.trained < whole
    else:
        assert fitted.trained == counts.get(name, whole)
    assert fitted.bytes >= 4 * fitted.trained
    assert fitted.encode is None

    def right(logits: Tensor, labels: Tensor) -> float:
        return (logits.argmax(1) == labels).double().mean().item()

    before = right(rows.zero_shot, rows.labels)
    assert right(fitted.logits(rows.data), rows.labels) > before
    again = READOUTS[name](training)
    assert torch.equal(fitted.logits(data), again.logits(data))
    if name in ("residual", "lin", "gains-adamw"):  # whose classes are their texts
        readout = fitted.adapted(data)
        torch.testing.assert_close(fitted.logits(data), rows.classifier.logits(readout))
        note = f"chosen by {int((rows.fold == HELD_OUT).sum())} held-out training images"
        assert note in fitted.notes[0]


def test_gains_on_a_line(pairs) -> None:
    """From zero-shot to the fit, the share by what is said of held-out images without them."""
    given = few(pairs["weights"], shots=8)
    rows, data = given.rows, given.test.data
    fitted = READOUTS["gains-interpolated"](Training(rows, given.learned, 0))
    outcome = METHODS["gains"].run(rows)
    torch.testing.assert_close(fitted.curve[0.0].adapted(data), data.readout)
    ends = data.readout, data.adapted(outcome.gains)
    for t in LINE:
        torch.testing.assert_close(
            fitted.curve[t].adapted(data), (1 - t) * ends[0] + t * ends[1], rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(
        fitted.curve[1.0].logits(data), outcome.logits(rows.classifier, data)
    )
    outside, inside = (part.nonzero().flatten() for part in (rows.fold == 0, rows.fold != 0))
    without = METHODS["gains"].run(rows.some(inside))
    found = {}
    ones = torch.ones(len(outside)).double()
    for t in LINE:
        at = replace(without, gains=1 + t * (without.gains - 1))
        logits = at.logits(rows.classifier, rows.data.rows(outside)).double()
        found[t] = calibrate(logits, rows.labels[outside], ones)
    best = min(found, key=lambda t: found[t].loss)
    assert best < 1
    # as sure as suits there: not as the whole fit is
    scale = without.logit_scale * found[best].temperature
    cosines = fitted.curve[best].logits(data) / outcome.logit_scale
    torch.testing.assert_close(fitted.logits(data), scale * cosines, rtol=1e-5, atol=1e-4)
    assert abs(scale / outcome.logit_scale - 1) > 0.1
    assert f"t {best:g}: chosen by" in fitted.notes[-1]
