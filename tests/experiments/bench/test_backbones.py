"""Methods through the backbone: against plain loops, on copies, without a look at test images."""

import math
from copy import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from residual_peft.classifiers.backbones import load_backbone
from residual_peft.errors import ResiDualError
from residual_peft.experiments.bench import descent
from residual_peft.experiments.bench.backbones import (
    BACKBONES,
    RATES,
    VERA_RANK,
    queries_and_values,
    tower_weights,
)
from residual_peft.experiments.bench.descent import Training, passes
from residual_peft.experiments.bench.encoding import Pair
from residual_peft.experiments.bench.entries import Protocol
from residual_peft.experiments.bench.images import load_images
from residual_peft.experiments.bench.plan import lines, plan
from residual_peft.experiments.bench.registry import Registry
from residual_peft.experiments.bench.run import run_registry
from residual_peft.towers.registry import find_tower
from tests.experiments.bench.case import few, small_registry, tiny_pair
from tests.models import Size

SIZE = Size()
D, L = SIZE.width, SIZE.layers


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Registry:
    return small_registry(tmp_path_factory.mktemp("backbones"), ("zero-shot", "lora"))


@pytest.fixture(scope="module")
def pair(registry: Registry, tmp_path_factory) -> Pair:
    return tiny_pair(registry, tmp_path_factory.mktemp("pair"))


def pixels(images) -> Tensor:
    return torch.cat([batch["pixel_values"] for batch in images.batches()])


def test_lora_is_pefts_trained_in_a_plain_loop(registry, pair: Pair, monkeypatch) -> None:
    """From the same seed: PEFT's LoRA, AdamW, warm-up and cosine, clipped, the middle rate."""
    monkeypatch.setattr(descent.train, "__defaults__", (6,))
    given = few(pair)
    fitted = BACKBONES["lora"](Training(replace(given.rows, fold=None), given.learned, 5))
    base = load_backbone(registry.models["tiny"].source).model
    torch.manual_seed(5)
    model = get_peft_model(
        base,
        LoraConfig(r=8, lora_alpha=16, target_modules=r".*vision_model.*\.(q|v)_proj"),
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    images, labels = pixels(given.learned.images), given.rows.labels
    texts, scale = given.rows.classifier.class_embeddings, given.rows.classifier.logit_scale

    def readouts(inputs: Tensor) -> Tensor:
        return base.get_image_features(pixel_values=inputs).pooler_output

    def logits(inputs: Tensor) -> Tensor:
        return scale * torch.nn.functional.normalize(readouts(inputs), dim=1) @ texts.T

    rate, size = RATES["lora"][1], 8
    steps, step = 6 * math.ceil(len(labels) / size), 0
    warm_up = round(0.1 * steps)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(6):
        for part in torch.randperm(len(labels), generator=generator).split(size):
            if step < warm_up:
                share = (1 + step * warm_up / warm_up) / (warm_up + 1)
            else:
                share = (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits(images[part]), labels[part]).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step += 1
    with torch.no_grad():
        test = pixels(given.test.images)
        expected, embeddings = logits(test), readouts(test)
    (seen,) = given.test.encoded(fitted)
    torch.testing.assert_close(fitted.adapted(seen), embeddings, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fitted.logits(seen), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(seen.readout, given.test.data.readout, atol=0.1)
    assert fitted.trained == L * 2 * 8 * 2 * D


@pytest.mark.parametrize(
    "names", [("lora", "lora-output"), ("ia3", "vera"), ("stream", "full")], ids=" ".join
)
def test_a_copy_is_trained_and_test_images_wait(pair: Pair, names: tuple[str, ...]) -> None:
    for name in names:
        trains_a_copy(pair, name)


def trains_a_copy(pair: Pair, name: str) -> None:
    model = pair.tower.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules, flags = list(model.named_modules()), [p.requires_grad for p in model.parameters()]
    given = few(pair)
    pair.images_of("test").pixels.forget()
    fitted = BACKBONES[name](Training(given.rows, given.learned, 0))
    assert not pair.images_of("test").pixels._kept
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert list(model.named_modules()) == modules
    assert [p.requires_grad for p in model.parameters()] == flags
    vision = [w for n, w in model.named_parameters() if "vision_model" in n or "visual_p" in n]
    own = sum(weight.numel() for weight in vision if weight.numel() != len(given.rows.columns()))
    gains = given.rows.data.state.gains.number
    counts = {
        "lora": L * 2 * 8 * 2 * D,
        "lora-output": max(1, round(gains / (L * 2 * D))) * L * 2 * D,
        "ia3": L * 2 * D,
        "vera": L * 2 * (VERA_RANK + D),
        "stream": L * (SIZE.heads * 12 + D),  # a head writes 12 dimensions, an MLP all
        "full": own,
    }
    assert fitted.trained == counts[name]
    assert fitted.bytes >= 4 * fitted.trained
    assert "chosen by 4 held-out training images" in fitted.notes[0]
    (seen,) = given.test.encoded(fitted)
    assert pair.images_of("test").pixels._kept
    assert torch.equal(fitted.encode(given.test.images), seen.readout)
    assert torch.equal(fitted.adapted(seen), seen.readout)
    (learned,) = [fitted.encoded(given.rows.data, given.learned.images)]
    loss = torch.nn.functional.cross_entropy
    labels, classifier = given.rows.labels, given.rows.classifier
    assert loss(fitted.logits(learned), labels) < loss(given.rows.zero_shot, labels)
    torch.testing.assert_close(fitted.logits(seen), classifier.logits(seen.readout))


def test_new_classes_and_other_tasks_are_asked_of_the_changed_tower(
    registry, pair: Pair, tmp_path
) -> None:
    """Half of the classes, whose labels are not the data set's; the other tasks' texts."""
    results = run_registry(registry.only(protocols=["halves"]), tmp_path, say=lambda line: None)
    before, result = (r for r in results if r.data == "grey")
    given = few(pair, 3, kind="base-to-novel")
    fitted = BACKBONES["lora"](Training(given.rows, given.learned, 0))
    (seen,), (novel,) = given.test.encoded(fitted), given.novel.encoded(fitted)
    right = fitted.logits(seen).argmax(1) == given.test.data.labels
    assert torch.equal(result.hits, right)
    told = given.of_novel.logits(novel.readout).argmax(1) == given.novel.data.labels
    assert result.novel_accuracy == pytest.approx(told.double().mean().item())
    assert result.calibration_error != before.calibration_error
    ((other, (zero, after)),) = result.forgotten.items()
    assert other == "other"
    other_pair = tiny_pair(replace(registry, data={"grey": registry.data["other"]}), tmp_path / "o")
    texts, labels = other_pair.texts, other_pair.test.labels
    for readout, score in (
        (other_pair.test.readout, zero),
        (fitted.encode(other_pair.images_of("test")), after),
    ):
        told = texts.logits(readout).argmax(1) == labels
        assert score == pytest.approx(told.double().mean().item())
    assert result.mean_memory
    assert result.mean_memory <= result.peak_memory


def test_full_fine_tuning_leaves_what_the_readout_does_not_pass_through() -> None:
    model = load_backbone().model
    anatomy = find_tower(model)
    found = {id(weight) for weight in tower_weights(anatomy)}
    names = {name for name, weight in model.named_parameters() if id(weight) in found}
    vision = {name for name, _ in model.named_parameters() if name.startswith("vision_model.")}
    assert names == vision | {"visual_projection.weight"}
    fewer = replace(anatomy, outside=(anatomy.layers[0].module,))
    first = {id(weight) for weight in anatomy.layers[0].module.parameters()}
    assert {id(weight) for weight in tower_weights(fewer)} == found - first

    # what a model does not have is said
    assert len(queries_and_values(anatomy)) == 2 * len(anatomy.layers)
    bare = copy(anatomy)
    nothing = replace(bare, layers=tuple(replace(a, module=a.mlp) for a in anatomy.layers))
    with pytest.raises(ResiDualError, match=r"wanted a tower with Linears called .*leave out the"):
        queries_and_values(nothing)


def test_they_are_no_default_and_the_plan_counts_them(registry) -> None:
    assert "lora" not in replace(registry, methods=Registry.methods).methods
    assert {"gains-interpolated", "residual", "lin"} <= set(Registry.methods)
    part = registry.only(data=["grey", "other"])
    found = {each.data: each for each in plan(part)}
    images = {name: load_images(part.data[name]) for name in part.tasks}
    train, tests = len(images["grey"].train), sum(len(each.test) for each in images.values())
    runs = (8, 8, train, 6)  # two seeds of two shots, all, and halves of three shots each
    assert found["grey"].backwards == sum(30 * (n + 3 * (n - round(n / 5))) for n in runs)
    assert found["grey"].again == sum(3 * 31 * round(n / 5) + tests for n in runs)
    assert any(
        line.startswith("Methods that train the backbone read ") for line in lines(plan(part))
    )
    # at most: of 28, 28, 28, 17, 28 and 28 images a draw of 27 leaves 5 to choose by
    some = replace(registry.data["grey"], source="not/here", classes=6)
    some = replace(some, images={"train": 157, "test": 2})
    few = {"few": Protocol("shots", 27, 27)}
    assert plan(replace(registry, data={"grey": some}, protocols=few))[0].backwards >= passes(
        152, 5
    )
    unknown = replace(registry.data["grey"], source="not/here", images={"train": 9, "test": 2})
    there = replace(registry, data={"grey": unknown}, protocols={"few": Protocol("shots", 2)})
    assert plan(there)[0].backwards is None
    assert any(line.endswith("0 once; 1 pair not known before.") for line in lines(plan(there)))
    none = lines(plan(part.only(methods=["zero-shot"])))
    assert not any("backbone" in line for line in none)
