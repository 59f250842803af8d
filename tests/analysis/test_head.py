"""What a class head says: parts that add up to the logits of the classifier itself."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from residual_peft import ResiDualConfig, ResiDualError, ZeroShotClassifier
from residual_peft.analysis import explain_head, explain_head_image, explain_head_row
from residual_peft.classifiers.heads import ClassHead
from residual_peft.classifiers.trained_head import TrainedHead
from residual_peft.solvers.coordinates import Coordinates, collect_coordinates
from residual_peft.tuner import gains_of
from tests.models import SIZES, pixels
from tests.tuner.twin import adapted

CLASSES, KNOWN = 5, 4
CONFIGS = {
    "default": ResiDualConfig(),
    "few": ResiDualConfig(units=("head",), components=3),
    "per unit": ResiDualConfig(granularity="unit", restore_mean=False),
}


def random_head(columns: int, text_weight: float = 0.3) -> ClassHead:
    generator = torch.Generator().manual_seed(5)
    draw = torch.randn(columns, KNOWN + 2, generator=generator, dtype=torch.float64)
    return ClassHead(
        draw[:, 0],
        draw[:, 1].abs() + 0.5,
        draw[:, 2:] + 0.3,  # not centred over the classes
        torch.arange(KNOWN).double(),
        text_weight,
        1.7,
    )


def case(
    name: str = "default", text_weight: float = 0.3
) -> tuple[PeftModel, ZeroShotClassifier, Coordinates, Tensor]:
    model = adapted(CONFIGS[name], size=SIZES["many heads"])
    images = pixels(12, SIZES["many heads"], seed=3)
    embeddings = torch.randn(CLASSES, 20, generator=torch.Generator().manual_seed(4))
    names = [f"class {i}" for i in range(CLASSES)]
    classifier = ZeroShotClassifier(model, names, embeddings, logit_scale=7.0)
    labels = torch.arange(12) % (KNOWN - 1)  # the head's last class has no images
    rows = collect_coordinates(model, [{"pixel_values": images, "labels": labels}])
    classifier.head = TrainedHead(random_head(rows.coordinates.shape[1], text_weight))
    return model, classifier, rows, images


def truth(classifier: ZeroShotClassifier, rows: Coordinates) -> tuple[Tensor, Tensor, Tensor]:
    """What every column says (N, K, C), the constant (C,) and the texts (N, C), in float64."""
    head = classifier.head.head
    x = (rows.coordinates.double() - head.mean) / head.scale
    parts = head.temperature * x[:, :, None] * head.weights
    gains, state = (
        gains_of(classifier.model).detach().double(),
        rows.state.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor),
    )
    exact = replace(
        rows, readout=rows.readout.double(), coordinates=rows.coordinates.double(), state=state
    )
    z = classifier.logits(exact.adapted(gains))[:, :KNOWN]
    constant = head.temperature * head.offset
    text = head.text_weight * z
    parts = parts - parts.mean(2, keepdim=True)
    return parts, constant - constant.mean(), text - text.mean(1, keepdim=True)


@pytest.mark.parametrize(("name", "weight"), [("default", 0.3), ("few", 0.0), ("per unit", 0.3)])
def test_shares_add_up_and_are_those_of_each_column_by_itself(name: str, weight: float) -> None:
    _, classifier, rows, _ = case(name, weight)
    parts, constant, text = truth(classifier, rows)
    logits = parts.sum(1) + constant + text
    answer = classifier.head.logits(classifier.logits(rows.readout).double(), rows.coordinates)
    own = answer[:, :KNOWN].double()
    if not weight:  # then the classifier's own logits are these, but for what all classes share
        torch.testing.assert_close(own - own.mean(1, keepdim=True), logits, atol=1e-5, rtol=1e-5)
    found = explain_head(classifier, rows)
    varying = logits - logits.mean(0)
    total = varying.square().sum()
    shares = ((parts - parts.mean(0)) * varying[:, None]).sum((0, 2)) / total
    torch.testing.assert_close(found.share, shares)
    assert float(found.share.sum()) + found.text_share == pytest.approx(1, abs=1e-9)
    assert found.spread == pytest.approx(float(varying.square().mean().sqrt()))
    each = torch.arange(12)
    toward = parts[each, :, rows.labels].mean(0)
    torch.testing.assert_close(found.toward_label, toward)
    whole = float(toward.sum()) + found.constant_toward_label + found.text_toward_label
    assert whole == pytest.approx(float(logits[each, rows.labels].mean()), abs=1e-9)
    sums = torch.stack([s.sum() for s in shares.split(list(found.counts))])
    assert [item.share for item in found.by_unit()] == pytest.approx(sums.tolist())
    values = sums if found.per_unit else shares
    best = found.strongest(1)[0]
    assert abs(best.share) == pytest.approx(float(values.abs().max()))
    assert (best.component is None) == found.per_unit


@pytest.mark.parametrize("name", ["default", "per unit"])
def test_reasons_are_the_means_over_the_images_of_a_class(name: str) -> None:
    _, classifier, rows, _ = case(name)
    parts, *_ = truth(classifier, rows)
    found = explain_head(classifier, rows)
    for k in range(KNOWN - 1):
        inside = rows.labels == k
        own = parts[inside, :, k].mean(0)
        torch.testing.assert_close(found.portrait[:, k], own)
        if found.per_unit:
            own = torch.stack([s.sum() for s in own.split(list(found.counts))])
        pro, con = found.reasons(k, 2)
        assert [item.effect for item in pro] == pytest.approx(
            own.sort().values.flip(0)[:2].tolist()
        )
        assert [item.effect for item in con] == pytest.approx(own.sort().values[:2].tolist())
        x = rows.coordinates[inside].double() - classifier.head.head.mean
        for item in pro if not found.per_unit else ():
            place = sum(found.counts[: found.units.index(item.unit)]) + item.component
            assert item.side == int(x[:, place].mean().sign())
    assert found.reasons(KNOWN - 1) == ([], [])
    with pytest.raises(ResiDualError, match="a class from 0 to 3, got 4"):
        found.reasons(KNOWN)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_made_it_this_class_is_the_difference_of_the_logits(name: str) -> None:
    _, classifier, rows, _ = case(name)
    parts, constant, text = truth(classifier, rows)
    logits = parts.sum(1) + constant + text
    for index in range(3):
        found = explain_head_row(classifier, rows, index)
        first, second = logits[index].argsort(descending=True)[:2].tolist()
        names = classifier.class_names
        assert (found.this_class, found.other_class) == (names[first], names[second])
        expected = float(logits[index, first] - logits[index, second])
        assert found.margin == pytest.approx(expected, abs=1e-9)
        whole = float(found.effects.sum()) + found.constant + found.text
        assert whole == pytest.approx(expected, abs=1e-9)
        assert sum(effect for _, effect in found.by_unit()) == pytest.approx(
            float(found.effects.sum())
        )
        assert sum(e for *_, e in found.strongest(10**6)) == pytest.approx(
            float(found.effects.sum())
        )
    asked = explain_head_row(classifier, rows, 0, this_class="class 2", other_class="class 0")
    difference = parts[0, :, 2] - parts[0, :, 0]
    torch.testing.assert_close(asked.effects, difference)


def test_an_image_is_explained_like_its_row() -> None:
    _, classifier, rows, images = case()
    classifier.image_processor = lambda images, return_tensors: {
        "pixel_values": torch.stack(images)
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "residual_peft.analysis.movement.pixel_batches",
            lambda items, processor, size: iter([{"pixel_values": torch.stack(items)}]),
        )
        found = explain_head_image(classifier, images[5])
    truth = explain_head_row(classifier, rows, 5)
    assert (found.this_class, found.other_class) == (truth.this_class, truth.other_class)
    torch.testing.assert_close(found.effects, truth.effects, atol=1e-4, rtol=1e-4)


def test_what_does_not_vary_has_no_shares() -> None:
    _, classifier, rows, _ = case(text_weight=0.0)
    same = replace(rows, coordinates=rows.coordinates[:1].repeat(12, 1))
    found = explain_head(classifier, same)
    assert found.share.abs().max() == 0


def test_images_of_other_classes_are_left_out() -> None:
    _, classifier, rows, _ = case()
    some = replace(rows, labels=torch.tensor([4, 4, *rows.labels[2:]]))
    found, truth = (
        explain_head(classifier, some),
        explain_head(classifier, rows.rows(torch.arange(2, 12))),
    )
    assert found.images == 10
    torch.testing.assert_close(found.share, truth.share)


def test_what_cannot_be_explained() -> None:
    _, classifier, rows, _ = case()
    with pytest.raises(ResiDualError, match="wanted two classes to compare, got 'class 1' twice"):
        explain_head_row(classifier, rows, 0, this_class="class 1", other_class="class 1")
    with pytest.raises(ResiDualError, match="there is no class 'class 4'; there are 4"):
        explain_head_row(classifier, rows, 0, this_class="class 4")
    with pytest.raises(ResiDualError, match="an image from 0 to 11, got 12"):
        explain_head_row(classifier, rows, 12)
    with pytest.raises(ResiDualError, match=r"at least two images of the classes .* got 1"):
        explain_head(classifier, rows.rows(torch.tensor([0])))
    other = case("few")[2]
    with pytest.raises(ResiDualError, match="of another basis or other units"):
        explain_head(classifier, other)
    width = rows.readout.shape[1]
    classifier.head = TrainedHead(random_head(width), "embedding")
    with pytest.raises(ResiDualError, match="reads the embedding as a whole"):
        explain_head(classifier, rows)
    classifier.head = None
    with pytest.raises(ResiDualError, match="with a class head, got one of texts and gains"):
        explain_head_row(classifier, rows, 0)
