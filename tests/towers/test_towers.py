"""What the families of towers have of their own: attention, image sizes, tokens, poolers."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import ViTForImageClassification, ViTModel

from residual_peft import (
    ResiDualConfig,
    ZeroShotClassifier,
    collect_coordinates,
    decompose,
    find_tower,
    fit_bases,
    gains_of,
)
from residual_peft.bases.fingerprint import Fingerprint
from residual_peft.classifiers.outputs import readout_of
from residual_peft.errors import ResiDualError
from residual_peft.towers import registry
from residual_peft.towers.families.parts import first_path
from residual_peft.towers.running import run_tower
from residual_peft.tuner import readout_state
from tests.models import EVERY, FAMILIES, TOWERS, Size, clip_model, pixels, randomize
from tests.pairs import table
from tests.pooled import CASES
from tests.tuner.twin import adapted, expected, randomize_gains, relative

ROOT = Path(__file__).parents[2]
LARGER = Size(image=24)
NAMES = ("cat", "dog", "bird")
OTHERS = [name for name in FAMILIES if name in TOWERS]
MEANS = [name for name in CASES if "ForImageClassification" in name]
TOKENS = [name for name in OTHERS if find_tower(TOWERS[name]()).reads_tokens]


@table("builder", OTHERS)
def test_eager_attention_sums_and_reads_out_the_same(builder: str) -> None:
    model, images = TOWERS[builder]().double(), pixels().double()
    before = run_tower(model, images)
    model.set_attn_implementation("eager")
    found = decompose(model, images)
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-10
    assert relative(found.readout, before) < 1e-6  # eager softmax is float32 in transformers


@table("builder", OTHERS)
def test_bfloat16_passes_the_check(builder: str) -> None:
    found = decompose(TOWERS[builder]().bfloat16(), pixels())
    assert found.contributions.dtype == torch.float32
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 0.05


@table("builder", OTHERS)
def test_another_image_size_by_interpolated_positions(builder: str) -> None:
    model, images = TOWERS[builder]().double(), pixels(size=LARGER).double()
    options = {} if "DINO" in builder.upper() else {"interpolate_pos_encoding": True}
    found = decompose(model, images, **options)
    assert relative(found.contributions.sum(1) + found.bias, found.readout) < 1e-10
    adapter = get_peft_model(model, ResiDualConfig())
    assert relative(run_tower(adapter, images, **options), found.readout) < 1e-6


def test_bases_and_coordinates_of_another_image_size() -> None:
    images = pixels(60, size=LARGER)
    batch = {"pixel_values": images, "labels": torch.zeros(60), "interpolate_pos_encoding": True}
    model = get_peft_model(TOWERS["ViTModel"](), ResiDualConfig())
    fit_bases(model, [batch])
    randomize_gains(model)
    found = collect_coordinates(model, [batch])
    wanted = run_tower(model, images, interpolate_pos_encoding=True)
    assert relative(found.adapted(gains_of(model)), wanted) < 1e-5
    assert relative(found.readout, wanted) > 1e-3


def test_another_image_size_is_refused_without() -> None:
    with pytest.raises(ResiDualError, match="does not take images of 24 x 24 pixels"):
        decompose(TOWERS["ViTModel"](), pixels(size=LARGER))


@table("builder", TOKENS)
def test_only_the_readout_token_is_adapted(builder: str) -> None:
    model, base = adapted(builder=builder), TOWERS[builder]()
    seen: list[Tensor] = []
    for tower in (base, model.get_base_model()):
        inner: Any = find_tower(tower).tower
        seen.append(inner(pixel_values=pixels()).last_hidden_state)
    assert torch.equal(seen[0][:, 1:], seen[1][:, 1:])
    assert relative(seen[1][:, 0], expected(base, model, pixels())) < 1e-5
    assert relative(seen[1][:, 0], seen[0][:, 0]) > 1e-3


@table("builder", ["ViTForImageClassification", "ViTMSNForImageClassification", *MEANS])
def test_a_head_for_image_classification_reads_what_is_adapted(builder: str) -> None:
    batch = {"pixel_values": pixels()}
    if builder in MEANS:
        batch = CASES[builder].batch()
        model = get_peft_model(CASES[builder].build(), ResiDualConfig())
        fit_bases(model, [CASES[builder].batch(60, seed=5)])
        randomize_gains(model)
    else:
        model = adapted(builder=builder)
    head = model.get_base_model().classifier
    torch.testing.assert_close(model(**batch).logits, head(run_tower(model, batch)))


@pytest.mark.parametrize("builder", ["DeiTModel", "DINOv3ViTModel"])
def test_one_adapter_per_sample(builder: str) -> None:
    model = adapted(builder=builder)
    model.add_adapter("other", ResiDualConfig(units=("head",)))
    fit_bases(model, [pixels(50, seed=6)], adapter_name="other")
    randomize_gains(model, "other", seed=8)
    names = ["default", "__base__", "other", "other", "default"]
    mixed = model(pixel_values=pixels(), adapter_names=names).last_hidden_state[:, 0]
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                wanted = run_tower(model, pixels())
        else:
            model.set_adapter(name)
            wanted = run_tower(model, pixels())
        torch.testing.assert_close(mixed[row], wanted[row])


def test_a_pooler_that_is_drawn_anew_changes_no_fingerprint(tmp_path: Any) -> None:
    """A checkpoint for classification has none, so that transformers draws it on every load."""
    classifier = TOWERS["ViTForImageClassification"]()
    classifier.save_pretrained(tmp_path / "base")
    one, other = (ViTModel.from_pretrained(tmp_path / "base") for _ in range(2))
    randomize(other.pooler, seed=3)
    assert Fingerprint.of(one).matches(Fingerprint.of(other))
    assert Fingerprint.of(one).matches(Fingerprint.of(classifier))
    model = get_peft_model(one, ResiDualConfig())
    randomize_gains(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = ViTForImageClassification.from_pretrained(tmp_path / "base")
    for base in (other, plain):
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert relative(run_tower(loaded, pixels()), run_tower(model, pixels())) < 1e-6


def test_a_part_that_is_nowhere_is_named() -> None:
    with pytest.raises(
        ResiDualError, match=r"ViTModel has none of here, there\.be, where transform"
    ):
        first_path(TOWERS["ViTModel"](), ("here", "there.be"))


def test_the_readout_in_an_output_is_the_token_and_not_what_is_pooled() -> None:
    model = TOWERS["ViTModel"]()
    output = model(pixel_values=pixels())
    assert torch.equal(readout_of(output, model), run_tower(model, pixels()))
    head = TOWERS["ViTForImageClassification"]()
    with pytest.raises(ResiDualError, match="wanted a model output with last_hidden_state, got Im"):
        readout_of(head(pixel_values=pixels()), head)


def test_mae_sees_all_patches_in_their_order_or_is_refused() -> None:
    model = CASES["ViTMAEModel"].build()
    seen: list[Tensor] = []
    block = find_tower(model).layers[0].module
    block.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    for readout in ("own", "own", "patches"):
        run_tower(model, pixels(), anatomy=find_tower(model, readout=readout))
    patches = (
        model.embeddings.patch_embeddings(pixels()) + model.embeddings.position_embeddings[:, 1:]
    )
    assert all(torch.equal(stream[:, 1:], patches) for stream in seen)
    model.config.mask_ratio = 0.75
    with pytest.raises(
        ResiDualError, match=r"mask_ratio=0\.75, so .* load it with mask_ratio=0\.0"
    ):
        find_tower(model)


def labelled() -> tuple[Tensor, Tensor]:
    return pixels(12, seed=4), torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 0, 1])


@pytest.mark.parametrize("build", [TOWERS["Dinov2Model"], clip_model], ids=["DINOv2", "CLIP"])
def test_class_means_are_those_of_a_loop(build: Callable) -> None:
    model, (images, labels) = build().double(), labelled()
    batches = [
        {"pixel_values": images[:5].double(), "labels": labels[:5]},
        (images[5:].double(), labels[5:]),
    ]
    made = ZeroShotClassifier.from_class_means(model, batches, NAMES, logit_scale=20.0)
    for number in range(3):
        rows = [
            run_tower(model, image[None].double())[0]
            for image, label in zip(images, labels.tolist(), strict=True)
            if label == number
        ]
        mean = sum(row / row.norm() for row in rows) / len(rows)
        torch.testing.assert_close(made.class_embeddings[number], mean / mean.norm())
    readout = run_tower(model, images.double())
    cosines = readout / readout.norm(dim=1, keepdim=True) @ made.class_embeddings.T
    torch.testing.assert_close(made.logits(readout), 20 * cosines)


def test_class_means_want_labels_and_images_of_every_class() -> None:
    model, (images, labels) = TOWERS["ViTModel"](), labelled()
    make = ZeroShotClassifier.from_class_means
    with pytest.raises(ResiDualError, match="of all 4 classes, got none of fish: give more images"):
        make(model, [(images, labels)], [*NAMES, "fish"])
    with pytest.raises(ResiDualError, match="wanted batches with pixel_values and labels as tens"):
        make(model, [images], NAMES)
    with pytest.raises(ResiDualError, match="got none of cat, dog, bird"):
        make(model, [], NAMES)


def test_a_classifier_from_class_means_is_saved_and_loaded(tmp_path: Any) -> None:
    model = adapted(builder="Dinov2Model")
    made = ZeroShotClassifier.from_class_means(model, [labelled()], NAMES)
    made.save_pretrained(tmp_path)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path, model=TOWERS["Dinov2Model"]())
    output = loaded.model(pixel_values=pixels())
    torch.testing.assert_close(loaded.logits(output), made.logits(run_tower(model, pixels())))


def test_the_table_of_towers_is_what_the_benchmark_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "towers.json").read_text())
    text = (ROOT / "docs" / "towers.md").read_text()
    assert list(measured["rows"]) == [*EVERY, *CASES, *OPEN_CLIP]
    assert f"(transformers {measured['transformers']})" in text
    for name, row in measured["rows"].items():
        cells = [cell if isinstance(cell, str) else f"{cell:.0e}" for cell in row.values()]
        assert f"| `{name}` | {' | '.join(cells)} |" in text
        assert row["units_float64"] < 1e-10
        assert max(cell for cell in row.values() if not isinstance(cell, str)) < 1e-5
        assert set(cells) & {"post-norm"} == ({"post-norm"} if name.startswith(POST) else set())


OPEN_CLIP = ("open_clip.CLIP", "open_clip.CLIP, layer scale", "open_clip.CustomTextCLIP")
POST = ("AltCLIPModel", "ChineseCLIPModel", "Blip")


def test_the_tower_that_the_page_describes_works(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "ARCHITECTURES", copy.deepcopy(registry.ARCHITECTURES))
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "towers.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"__name__": "towers_page"}
    exec(code[1], names)
    model = get_peft_model(randomize(names["TinyViT"]()), ResiDualConfig())
    assert len(find_tower(model).units()) == 1 + 2 * 3
    fit_bases(model, [pixels(60, seed=5)])
    randomize_gains(model)
    with model.disable_adapter():
        before = model(pixels())
    state = readout_state(model)
    found = collect_coordinates(model, [{"pixel_values": pixels(), "labels": torch.zeros(5)}])
    assert relative(model(pixels()), found.adapted(gains_of(model))) < 1e-5
    assert relative(model(pixels()), before) > 1e-2
    assert state.pools == 1


@pytest.mark.parametrize("name", ["AltCLIPModel", "ChineseCLIPModel"])
def test_a_post_norm_text_tower_is_refused(name: str) -> None:
    with pytest.raises(ResiDualError, match=f"the text tower of {name} is post-norm: a LayerNorm"):
        get_peft_model(TOWERS[name](), ResiDualConfig(side="text"))
    with pytest.raises(ResiDualError, match="ViTModel is not known for its text tower; wanted one"):
        find_tower(TOWERS["ViTModel"](), "text")
