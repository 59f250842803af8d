"""What gains did to the logits: parts that add up to the change that the model itself shows."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor

from residual_peft import ResiDualConfig, ResiDualError, ZeroShotClassifier
from residual_peft.analysis import explain_adapter, explain_image, explain_row
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.towers.running import run_tower, unadapted
from residual_peft.tuner import adapter_basis, gains_of
from tests.models import SIZES, pixels
from tests.pairs import table
from tests.tuner.twin import adapted

CLASSES = 5
CONFIGS = {
    "default": ResiDualConfig(),
    "heads": ResiDualConfig(units=("head",), components=3),
    "residual": ResiDualConfig.paper("residual"),
    "residual_star": ResiDualConfig.paper("residual_star"),
    "coarse": ResiDualConfig.paper("coarse"),
    "rd_y": ResiDualConfig.paper("rd_y"),
    "per unit": ResiDualConfig(granularity="unit", restore_mean=False),
}


def case(name: str = "default") -> tuple[PeftModel, ZeroShotClassifier, Coordinates, Tensor]:
    model = adapted(CONFIGS[name], size=SIZES["many heads"])
    images = pixels(12, SIZES["many heads"], seed=3)
    generator = torch.Generator().manual_seed(4)
    embeddings = torch.randn(CLASSES, 20, generator=generator)
    classifier = ZeroShotClassifier(
        model, [f"class {i}" for i in range(CLASSES)], embeddings, logit_scale=7.0
    )
    labels = torch.arange(12) % CLASSES
    rows = collect_coordinates(model, [{"pixel_values": images, "labels": labels}])
    return model, classifier, rows, images


@torch.no_grad()
def logits(model: PeftModel, classifier: ZeroShotClassifier, images: Tensor) -> list[Tensor]:
    with unadapted(model):
        before = classifier.logits(run_tower(model, images)).double()
    after = classifier.logits(run_tower(model, images)).double()
    return [x - x.mean(1, keepdim=True) for x in (before, after)]


@table("name", CONFIGS)
def test_shares_and_margins_add_up_to_what_the_model_shows(name: str) -> None:
    model, classifier, rows, images = case(name)
    found = explain_adapter(classifier, rows)
    before, after = logits(model, classifier, images)
    change = after - before
    total = float(found.share.sum()) + found.rescaling_share + found.settings_share
    assert total == pytest.approx(1, abs=1e-4)
    assert found.change == pytest.approx(float(change.square().mean().sqrt()), rel=1e-4)
    toward = float(change[torch.arange(12), rows.labels].mean())
    assert float(
        found.toward_label.sum()
    ) + found.rescaling_toward_label + found.settings_toward_label == pytest.approx(
        toward, abs=1e-4
    )
    if CONFIGS[name].remainder == "keep" and CONFIGS[name].restore_mean:
        assert found.settings_share == pytest.approx(0, abs=1e-6)


@table("name", CONFIGS)
def test_each_share_is_that_of_a_component_moved_by_itself(name: str) -> None:
    """The slow twin: every component's own change of every logit, image by image."""
    model, classifier, rows, images = case(name)
    found = explain_adapter(classifier, rows)
    before, after = logits(model, classifier, images)
    change = after - before
    weights = 7.0 * classifier.class_embeddings.double()
    weights = weights - weights.mean(0)
    with torch.no_grad():
        lengths = run_tower(model, images).double().norm(dim=1)
    for k in range(len(rows.state.directions)):
        gain = float(rows.state.gains.spread(gains_of(model).detach())[k])
        phi = rows.state.directions[k].double()
        part = torch.stack(
            [
                (gain - 1) * float(rows.coordinates[n, k]) * weights @ phi / lengths[n]
                for n in range(12)
            ]
        )
        share = float((part * change).sum() / change.square().sum())
        assert float(found.share[k]) == pytest.approx(share, abs=2e-5)
        own = float(part[torch.arange(12), rows.labels].mean())
        assert float(found.toward_label[k]) == pytest.approx(own, abs=2e-5)
        assert float(found.gains[k]) == pytest.approx(gain)
    torch.testing.assert_close(found.variance, rows.coordinates.double().square().mean(0))


def test_by_unit_and_strongest() -> None:
    _, classifier, rows, _ = case()
    found = explain_adapter(classifier, rows)
    units = found.by_unit()
    assert [effect.unit for effect in units] == list(rows.state.settings.units)
    assert sum(effect.share for effect in units) == pytest.approx(float(found.share.sum()))
    assert sum(effect.components for effect in units) == len(found.gains)
    eigenvalues = adapter_basis(classifier.model).eigenvalues
    for effect, gains, variance in zip(
        units, found.gains.split(found.counts), eigenvalues, strict=True
    ):
        mean = float((gains * variance).sum() / variance.sum())
        assert effect.mean_gain == pytest.approx(mean)
    ranked = found.strongest(7)
    assert len(ranked) == 7
    shares = [abs(effect.share) for effect in ranked]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == float(found.share.abs().max())
    first = ranked[0]
    place = found.units.index(first.unit)
    index = sum(found.counts[:place]) + first.component
    assert float(found.share[index]) == first.share
    assert float(found.gains[index]) == first.gain


@pytest.mark.parametrize("name", ["coarse", "per unit"])
def test_whole_units_are_shown_as_such(name: str) -> None:
    model, classifier, rows, _ = case(name)
    found, moved = explain_adapter(classifier, rows), explain_row(classifier, rows, 3)
    units, gains = list(rows.state.settings.units), gains_of(model).detach()
    for effect in found.strongest(4):
        index = units.index(effect.unit)
        assert effect.component is None
        assert effect.gain == pytest.approx(float(gains[index]), abs=1e-6)
        shares = found.share.split(list(found.counts))
        assert effect.share == pytest.approx(float(shares[index].sum()))
    listed = moved.strongest(len(units))
    assert len(listed) == len(units)
    assert sum(effect for *_, effect in listed) == pytest.approx(float(moved.effects.sum()))
    for unit, number, gain, _ in listed:
        assert number is None
        assert gain == pytest.approx(float(gains[units.index(unit)]), abs=1e-6)


def test_a_chunk_is_no_border(monkeypatch: pytest.MonkeyPatch) -> None:
    _, classifier, rows, _ = case()
    whole = explain_adapter(classifier, rows)
    monkeypatch.setattr("residual_peft.analysis.movement.CHUNK", 5)
    torch.testing.assert_close(explain_adapter(classifier, rows).share, whole.share)


@table("name", CONFIGS)
def test_the_effects_on_one_image_add_up_to_its_change_of_margin(name: str) -> None:
    model, classifier, rows, images = case(name)
    before, after = logits(model, classifier, images)
    for index in range(12):
        found = explain_row(classifier, rows, index)
        start, end = (classifier.class_names.index(c) for c in (found.from_class, found.to_class))
        assert start == int(before[index].argmax())
        best = after[index].clone()
        best[start] = -torch.inf
        assert end == int(best.argmax())
        assert found.margin_before == pytest.approx(
            float(before[index, end] - before[index, start]), abs=1e-4
        )
        assert found.margin_after == pytest.approx(
            float(after[index, end] - after[index, start]), abs=1e-4
        )
        moved = float(found.effects.sum()) + found.rescaling + found.settings
        assert moved == pytest.approx(found.margin_after - found.margin_before, abs=1e-4)


def test_the_strongest_effects_on_an_image_name_their_components() -> None:
    _, classifier, rows, _ = case()
    found = explain_row(classifier, rows, 4, from_class="class 3", to_class="class 1")
    assert (found.from_class, found.to_class) == ("class 3", "class 1")
    unit, number, gain, effect = found.strongest(1)[0]
    assert abs(effect) == float(found.effects.abs().max())
    index = sum(found.counts[: found.units.index(unit)]) + number
    assert float(found.effects[index]) == effect
    assert float(gains_of(classifier.model)[index]) == pytest.approx(gain)


class _Processor:
    """Pixels that a tiny model takes."""

    def __call__(self, images: list[Image.Image], **options: object) -> dict[str, Tensor]:
        return {
            "pixel_values": torch.stack(
                [pixels(1, SIZES["many heads"], seed=image.size[0])[0] for image in images]
            )
        }


def test_an_image_by_itself_is_as_its_row() -> None:
    model, classifier, _, _ = case()
    classifier.image_processor = _Processor()
    found = explain_image(classifier, Image.new("RGB", (11, 9)))
    batch = {
        "pixel_values": pixels(1, SIZES["many heads"], seed=11),
        "labels": torch.zeros(1, dtype=torch.int64),
    }
    truth = explain_row(classifier, collect_coordinates(model, [batch]), 0)
    torch.testing.assert_close(found.effects, truth.effects)
    assert found.margin_after == truth.margin_after


def test_what_a_user_can_mend() -> None:
    _, classifier, rows, _ = case()
    with pytest.raises(ResiDualError, match="wanted an image from 0 to 11, got 12"):
        explain_row(classifier, rows, 12)
    with pytest.raises(ResiDualError, match="there is no class 'cat'; there are 5: class 0,"):
        explain_row(classifier, rows, 0, to_class="cat")
    with pytest.raises(ResiDualError, match="two classes to compare, got 'class 2' twice"):
        explain_row(classifier, rows, 0, from_class="class 2", to_class="class 2")
    with pytest.raises(ResiDualError, match="one label per image, got labels of shape"):
        explain_adapter(classifier, replace(rows, labels=torch.zeros(12, 5)))
    _, other, _, _ = case("heads")
    with pytest.raises(ResiDualError, match=r"with \d+ gains, this one has \d+; collect them anew"):
        explain_adapter(other, rows)
