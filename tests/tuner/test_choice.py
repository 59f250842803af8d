"""Which units are adapted and how many directions of each, by patterns as PEFT users write them."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from residual_peft.bases.basis import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import (
    ResiDualConfig,
    ResiDualReadout,
    fit_bases,
    gains_by_module,
    gains_by_unit,
    gains_of,
    readout_state,
)
from tests.models import clip_model, pixels
from tests.pairs import dealt, in_turn, table
from tests.tuner.twin import IMAGES, adapted, expected, relative

EVERY = ("embed", "head", "mlp")
HEADS = ["layer0.head0", "layer0.head1", "layer1.head0", "layer1.head1"]
CHOICES = {
    "a regex": ({"unit_pattern": r"layer\d\.head1"}, ["layer0.head1", "layer1.head1"]),
    "a regex is for the whole name": ({"unit_pattern": r"layer1.*"}, [*HEADS[2:], "layer1.mlp"]),
    "names": ({"unit_pattern": ["layer1.mlp", "layer0.head0"]}, ["layer0.head0", "layer1.mlp"]),
    "endings": ({"unit_pattern": ["head1", "embed"]}, ["embed", "layer0.head1", "layer1.head1"]),
    "pattern and layer": ({"unit_pattern": ["mlp"], "layers_to_transform": 1}, ["layer1.mlp"]),
    "without modules": (
        {"exclude_modules": ["layers.0.self_attn.out_proj", "mlp"]},
        ["embed", *HEADS[2:]],
    ),
    "without an MLP by its Linear": (
        {"exclude_modules": r".*layers\.1\.mlp\.fc2"},
        ["embed", *HEADS[:2], "layer0.mlp", *HEADS[2:]],
    ),
    "without the embedding": (
        {"exclude_modules": ["pre_layrnorm"], "unit_pattern": ["head0", "embed"]},
        [
            "layer0.head0",
            "layer1.head0",
        ],
    ),
}


@table(("choice", "fit"), dealt(CHOICES, [False, True]))
def test_units_are_chosen(tmp_path: Path, choice: str, fit: bool) -> None:
    options, names = CHOICES[choice]
    config = ResiDualConfig(units=EVERY, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*exclude_modules.*")
        model = adapted(config, fit=fit, dtype=torch.float64)
    assert list(map(str, gains_by_unit(model))) == names
    images = pixels().double()
    found = run_tower(model, images)
    assert relative(found, expected(clip_model().double(), model, images)) < 1e-10
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model().double(), tmp_path)
    assert list(map(str, gains_by_unit(loaded))) == names
    assert torch.equal(run_tower(loaded, images), found)


PATTERNS = {
    "first match": ({r"layer0\.head\d": 2, "head1": 3}, None, [5, 2, 2, 16, 13, 3, 16]),
    "other order": ({"head1": 3, r"layer0\.head\d": 2}, None, [5, 2, 3, 16, 13, 3, 16]),
    "beside components": ({"mlp": 4, "embed": 1}, 6, [1, 6, 6, 4, 6, 6, 4]),
}


@in_turn(
    name=PATTERNS,
    fit=[False, True],
)
def test_each_unit_has_its_own_number_of_directions(tmp_path: Path, name: str, fit: bool) -> None:
    pattern, components, wanted = PATTERNS[name]
    config = ResiDualConfig(units=EVERY, component_pattern=pattern, components=components)
    model = adapted(config, fit=fit, dtype=torch.float64)
    counts = model.peft_config["default"].component_counts
    # without a pattern a unit keeps all it has, which depends on the source of the basis
    every = adapted(ResiDualConfig(units=EVERY), fit=fit, gains=False).peft_config["default"]
    free = [
        all(key not in str(unit) and key[:6] != str(unit)[:6] for key in pattern)
        for unit in gains_by_unit(model)
    ]
    for index, count in enumerate(counts):
        if components is None and free[index]:
            assert count == every.component_counts[index]
        else:
            assert count == wanted[index], index
    images = pixels().double()
    wanted_readout = expected(clip_model().double(), model, images)
    assert relative(run_tower(model, images), wanted_readout) < 1e-10
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model().double(), tmp_path)
    assert loaded.peft_config["default"].component_pattern == pattern
    assert torch.equal(run_tower(loaded, images), run_tower(model, images))


def test_a_share_of_variance_by_unit() -> None:
    model = adapted(ResiDualConfig(component_pattern={"head0": 0.5, "mlp": 1}))
    whole = SpectralBasis.fit(clip_model(), [pixels(IMAGES, seed=5)])
    for unit, gains in gains_by_unit(model).items():
        wanted = 0.5 if unit.head == 0 else 1 if unit.kind == "mlp" else None
        assert len(gains) == len(whole[unit].truncate(wanted).components)


def test_a_basis_by_path_serves_every_choice(tmp_path: Path) -> None:
    basis = SpectralBasis.fit(clip_model(), [pixels(IMAGES, seed=5)], EVERY)
    basis.save_pretrained(tmp_path / "basis")
    options = {"unit_pattern": ["head0", "mlp"], "component_pattern": {"layer0.mlp": 3}}
    config = ResiDualConfig(basis=tmp_path / "basis", save_basis=False, **options)
    model = adapted(config, fit=False)
    assert model.peft_config["default"].component_counts[1] == 3
    wanted = expected(clip_model(), model, pixels())
    assert relative(run_tower(model, pixels()), wanted) < 1e-5
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "adapter")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))


@table(
    ("options", "message"),
    [
        (
            {"unit_pattern": "layer7.*"},
            r"unit_pattern: 'layer7.\*' names none of the 6 units to ch",
        ),
        ({"unit_pattern": ["head0", "head5"]}, "unit_pattern: 'head5' names none of the 6 units"),
        ({"unit_pattern": "head0"}, "unit_pattern: 'head0' names none"),  # a regex is for all of it
        ({"component_pattern": {"embed": 3}}, "component_pattern: 'embed' names none of the 6"),
        ({"exclude_modules": ["mlp", "out_proj"]}, "leaves no unit to adapt"),
    ],
)
def test_patterns_that_name_nothing_are_refused(options: dict, message: str) -> None:
    base = clip_model()
    with pytest.raises(ResiDualError, match=message):
        get_peft_model(base, ResiDualConfig(**options))
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


@table(
    ("options", "message"),
    [
        ({"unit_pattern": "layer("}, r"unit_pattern: 'layer\(' is no regex"),
        ({"unit_pattern": [3]}, r"unit_pattern: wanted patterns that are strings, got \[3\]"),
        ({"exclude_modules": [""]}, "exclude_modules: wanted patterns that are strings"),
        ({"component_pattern": ["mlp"]}, "component_pattern: wanted a dict such as"),
        ({"component_pattern": {"mlp": 0}}, "components=0: wanted None"),
        (
            {"component_pattern": {"mlp": 2}, "granularity": "unit", "restore_mean": False},
            r"components=\{'mlp': 2\} with granularity='unit'",
        ),
    ],
)
def test_patterns_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        ResiDualConfig(**options)


def test_too_few_images_for_one_unit_are_refused() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(component_pattern={"mlp": 12}))
    with pytest.raises(ResiDualError, match="too few images: components=12 needs at least 13"):
        fit_bases(model, [pixels(8)])


def test_a_module_that_excludes_nothing_is_said_by_peft() -> None:
    with pytest.warns(UserWarning, match="exclude_modules=.* but no modules were excluded"):
        get_peft_model(clip_model(), ResiDualConfig(exclude_modules=["nowhere"]))


def test_a_path_is_the_same_under_another_method() -> None:
    lora = get_peft_model(clip_model(), LoraConfig(target_modules=["out_proj"]))
    model = get_peft_model(
        lora.get_base_model(), ResiDualConfig(exclude_modules=["layers.0.self_attn.out_proj"])
    )
    assert "layer0.head0" not in map(str, gains_by_unit(model))
    assert "layer1.head0" in map(str, gains_by_unit(model))


# --- modules_to_save


def test_whole_modules_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    config = ResiDualConfig(modules_to_save=["text_projection"])
    model = get_peft_model(clip_model(), config)
    tokens = torch.randint(0, 60, (3, 7))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2
    assert any("text_projection.modules_to_save.default" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    model(pixel_values=pixels(), input_ids=tokens).logits_per_image.square().sum().backward()
    optimizer.step()
    wanted = model.eval()(pixel_values=pixels(), input_ids=tokens)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    found = loaded(pixel_values=pixels(), input_ids=tokens)
    assert torch.equal(found.logits_per_image, wanted.logits_per_image)
    plain = clip_model()(pixel_values=pixels(), input_ids=tokens)
    assert relative(found.text_embeds, plain.text_embeds) > 1e-3
    with loaded.disable_adapter():
        off = loaded(pixel_values=pixels(), input_ids=tokens)
    assert torch.equal(off.logits_per_image, plain.logits_per_image)
    assert gains_of(loaded).shape == readout_state(loaded).directions.shape[:1]


@table("name", ["visual_projection", "vision_model.post_layernorm", "fc1"])
def test_the_image_tower_is_not_to_be_trained_beside_its_bases(name: str) -> None:
    base = clip_model()
    with pytest.raises(ResiDualError, match=r"would train '.*', which is part of the image tower"):
        get_peft_model(base, ResiDualConfig(modules_to_save=[name]))
    assert not any(isinstance(module, ResiDualReadout) for module in base.modules())


@table("name", ["visual_projection", "post_layernorm"])
def test_what_stream_mode_adapts_stays_beside_whole_modules(name: str) -> None:
    config = ResiDualConfig(
        mode="stream", components=4, unit_pattern=["layer1.mlp"], modules_to_save=[name]
    )
    bare = ResiDualConfig(mode="stream", components=4, unit_pattern=["layer1.mlp"])
    model, other = (get_peft_model(clip_model(), one) for one in (config, bare))
    for one in (model, other):
        fit_bases(one, [pixels(40)])
    assert {name: len(own) for name, own in gains_by_module(model).items()} == {
        name: len(own) for name, own in gains_by_module(other).items()
    }
    assert torch.equal(run_tower(model, pixels()), run_tower(other, pixels()))
    model.add_adapter("second", config)
    fit_bases(model, [pixels(40)], adapter_name="second")
    assert sum(map(len, gains_by_module(model, "second").values())) == 4


@table("mode", ["readout", "stream"])
def test_a_model_with_whole_modules_is_unloaded(mode: str) -> None:
    """One without a weight of its own, too."""
    tokens = torch.randint(0, 60, (3, 7))
    given = {"pixel_values": pixels(), "input_ids": tokens}
    plain = clip_model()(**given).logits_per_image
    for merge in (False, True)[: 1 + (mode == "stream")]:
        config = ResiDualConfig(mode=mode, modules_to_save=["text_model"])
        model = get_peft_model(clip_model(), config).eval()
        wanted = model(**given).logits_per_image
        bare = model.merge_and_unload() if merge else model.unload()
        assert not any(isinstance(module, BaseTunerLayer) for module in bare.modules())
        torch.testing.assert_close(bare(**given).logits_per_image, wanted)
        torch.testing.assert_close(bare(**given).logits_per_image, plain)


def test_a_tower_that_another_adapter_trains_a_copy_of_is_refused() -> None:
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["visual_projection"])
    model = get_peft_model(clip_model(), lora)
    with pytest.raises(ResiDualError, match=r"trains a copy of it .modules_to_save.: readout mode"):
        get_peft_model(model.base_model.model, ResiDualConfig())


def test_readout_mode_goes_into_the_model_itself() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    with pytest.raises(ResiDualError, match="wanted the model itself, got a PeftModel around it"):
        get_peft_model(model, ResiDualConfig())


def test_a_state_of_another_basis_is_told_before_torchs_lines() -> None:
    first, second = (get_peft_model(clip_model(), ResiDualConfig()) for _ in range(2))
    fit_bases(first, [pixels(5)])
    with pytest.raises(RuntimeError, match=r"its basis is another\. PeftModel.from_pretrained "):
        second.load_state_dict(first.state_dict())
