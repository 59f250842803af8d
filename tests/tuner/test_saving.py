import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from residual_peft.bases.basis import SpectralBasis
from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import (
    ResiDualConfig,
    ResiDualReadout,
    adapter_basis,
    fit_bases,
    gains_of,
    load_adapter,
    readout_state,
)
from tests.models import (
    EVERY,
    FAMILIES,
    Size,
    clip_model,
    clip_vision_model,
    clip_vision_model_with_projection,
    pixels,
)
from tests.pairs import in_turn, table
from tests.tuner.saved_files import CONFIG, WEIGHTS, edit_config
from tests.tuner.twin import adapted, expected, randomize_gains, relative

PREFIX = "base_model.model.visual_projection.residual_peft_"
PAPER = ("residual", "residual_star", "coarse", "rd_y")


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / WEIGHTS)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[PREFIX + name]
        else:
            tensors[PREFIX + name] = tensor
    save_file(tensors, directory / WEIGHTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapted().save_pretrained(tmp_path)
    return tmp_path


@in_turn(
    builder=FAMILIES,
    options=({}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}),
)
def test_saved_and_loaded(tmp_path: Path, builder: str, options: dict) -> None:
    model = adapted(ResiDualConfig(components=0.9), builder=builder)
    wanted = run_tower(model, pixels())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(EVERY[builder](), tmp_path, **options)
    assert torch.equal(run_tower(loaded, pixels()), wanted)
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(EVERY[builder](), tmp_path, is_trainable=True, **options)
    assert [p for p in trainable.parameters() if p.requires_grad] == [gains_of(trainable)]
    run_tower(trainable, pixels()).sum().backward()
    assert bool(gains_of(trainable).grad.isfinite().all())


@in_turn(name=PAPER, dtype=(torch.float32, torch.float64))
def test_every_preset_is_saved_and_loaded(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = adapted(ResiDualConfig.paper(name), dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model().to(dtype), tmp_path)
    images = pixels().to(dtype)
    assert torch.equal(run_tower(loaded, images), run_tower(model, images))


def test_loading_warns_of_nothing_and_computes_no_basis(
    saved: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpectralBasis, "from_weights", None)
    PeftModel.from_pretrained(clip_model(), saved)
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()]


def test_the_file_decides_and_nothing_is_computed_again(saved: Path) -> None:
    """A basis that were fitted or derived anew would pass by luck: change the one in the file."""
    # copies: some releases of safetensors map the file, which is then written over
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / WEIGHTS).items()}
    components, width = tensors[PREFIX + "components"], 16
    edit_weights(
        saved,
        components=components.flip(0).contiguous(),
        head_means=tensors[PREFIX + "head_means"] - 0.5,
        head_components=tensors[PREFIX + "head_components"].flip(0).contiguous(),
        means=tensors[PREFIX + "means"] + 0.5,
        gains=tensors[PREFIX + "gains"] * 2,
    )
    loaded = PeftModel.from_pretrained(clip_model(), saved)
    last = readout_state(loaded).directions[-width:]  # of the last unit, an MLP
    assert torch.equal(last, components[:width].flip(0))
    wanted = expected(clip_model(), loaded, pixels())
    assert relative(run_tower(loaded, pixels()), wanted) < 1e-5
    assert relative(run_tower(loaded, pixels()), run_tower(adapted(), pixels())) > 1e-2


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loaded_onto_half_precision_of_the_same_weights(
    saved: Path, low_cpu_mem_usage: bool
) -> None:
    loaded = PeftModel.from_pretrained(
        clip_model().bfloat16(), saved, low_cpu_mem_usage=low_cpu_mem_usage
    )
    layer = next(m for m in loaded.modules() if isinstance(m, ResiDualReadout))
    tensors = load_file(saved / WEIGHTS)
    assert torch.equal(layer.stored("default").components, tensors[PREFIX + "components"])
    assert relative(run_tower(loaded, pixels().bfloat16()), run_tower(adapted(), pixels())) < 0.1


def test_loaded_onto_another_class_with_the_same_tower(saved: Path) -> None:
    base = clip_model()
    image_side = clip_vision_model_with_projection()
    image_side.load_state_dict(base.state_dict(), strict=False)
    loaded = PeftModel.from_pretrained(image_side, saved)
    assert torch.equal(run_tower(loaded, pixels()), run_tower(adapted(), pixels()))


def test_several_adapters_are_loaded_side_by_side(tmp_path: Path) -> None:
    model, outputs = adapted(), {}
    model.add_adapter("star", ResiDualConfig.paper("residual_star"))
    fit_bases(model, [pixels(50, seed=8)], "star")
    model.add_adapter("again", ResiDualConfig())
    fit_bases(model, [pixels(60, seed=5)], "again")
    for name in ("star", "again"):
        randomize_gains(model, name, seed=len(name))
    for name in model.peft_config:
        model.set_adapter(name)
        outputs[name] = run_tower(model, pixels())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    for name in ("star", "again"):
        loaded.load_adapter(tmp_path / name, name, low_cpu_mem_usage=name == "star")
    for name, wanted in outputs.items():
        loaded.set_adapter(name)
        assert torch.equal(run_tower(loaded, pixels()), wanted), name
    layer = next(m for m in loaded.modules() if isinstance(m, ResiDualReadout))
    assert layer.stored("again").components is layer.stored("default").components
    assert readout_state(loaded, "again").head_maps is readout_state(loaded, "default").head_maps


def test_loading_into_a_shared_basis_leaves_the_others(tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter("b", ResiDualConfig())
    fit_bases(model, [pixels(60, seed=5)], "b")
    wanted = run_tower(model, pixels())
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    components = load_file(tmp_path / "b" / WEIGHTS)[PREFIX + "components"].clone()
    edit_weights(tmp_path / "b", components=-components)
    model.load_adapter(tmp_path / "b", "b")
    assert torch.equal(run_tower(model, pixels()), wanted)
    layer = next(m for m in model.modules() if isinstance(m, ResiDualReadout))
    assert torch.equal(layer.stored("default").components, components)


def test_training_resumes_where_it_was_saved(saved: Path) -> None:
    """As the Trainer resumes: the weights go into an adapter that is already there."""
    model = adapted(gains=False)
    parameter = gains_of(model)
    model.load_adapter(saved, "default", is_trainable=True)
    assert gains_of(model) is parameter
    assert parameter.requires_grad
    assert torch.equal(run_tower(model, pixels()), run_tower(adapted(), pixels()))


def test_a_whole_state_dict_is_loaded(tmp_path: Path) -> None:
    model, other = adapted(), adapted(gains=False)
    fit_bases(other, [pixels(60, seed=77)])
    other.load_state_dict(model.state_dict())
    assert torch.equal(run_tower(other, pixels()), run_tower(model, pixels()))


def test_auto_peft_model_finds_the_base(tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "base")
    base = type(clip_model()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, ResiDualConfig())
    randomize_gains(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model.eval(), pixels()))


def test_a_config_read_by_peft_itself_will_do(saved: Path) -> None:
    config = PeftConfig.from_pretrained(saved)
    loaded = PeftModel.from_pretrained(clip_model(), saved, config=config)
    assert torch.equal(run_tower(loaded, pixels()), run_tower(adapted(), pixels()))


def test_the_config_of_a_loaded_adapter_makes_a_new_one(saved: Path) -> None:
    loaded = PeftModel.from_pretrained(clip_model(), saved, is_trainable=True)
    model = get_peft_model(clip_model(seed=1), loaded.peft_config["default"])
    wanted = run_tower(clip_model(seed=1), pixels())
    assert relative(run_tower(model, pixels()), wanted) < 1e-6
    assert model.peft_config["default"].fingerprint != loaded.peft_config["default"].fingerprint


# --- with and without the basis in the file


def test_without_its_basis_the_file_holds_the_gains_alone(tmp_path: Path) -> None:
    model = adapted(ResiDualConfig(save_basis=False), fit=False)
    model.save_pretrained(tmp_path)
    assert list(load_file(tmp_path / WEIGHTS)) == [PREFIX + "gains"]
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))


def test_coarse_saves_its_gains_alone(tmp_path: Path) -> None:
    adapted(ResiDualConfig.paper("coarse")).save_pretrained(tmp_path)
    assert list(load_file(tmp_path / WEIGHTS)) == [PREFIX + "gains"]


@pytest.mark.parametrize("save_basis", [True, False])
def test_a_basis_by_its_path(tmp_path: Path, save_basis: bool) -> None:
    basis = SpectralBasis.fit(clip_model(), [pixels(40, seed=2)], ("embed", "head", "mlp"))
    basis.save_pretrained(tmp_path / "basis")
    config = ResiDualConfig(
        units=("embed", "head", "mlp"),
        basis=tmp_path / "basis",
        save_basis=save_basis,
        components=5,
        layers_to_transform=1,
    )
    model = adapted(config, fit=False)
    assert model.peft_config["default"].num_samples == 40
    assert model.peft_config["default"].component_counts == [1, 5, 5, 5]
    wanted = expected(clip_model(), model, pixels())
    assert relative(run_tower(model, pixels()), wanted) < 1e-5
    model.save_pretrained(tmp_path / "adapter")
    if save_basis:
        shutil.rmtree(tmp_path / "basis")  # needed no more
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "adapter")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))


def test_another_basis_at_the_path_is_refused(tmp_path: Path) -> None:
    for number, components in ((1, 5), (2, 3)):
        basis = SpectralBasis.fit(clip_model(), [pixels(40)], ("head", "mlp"), components)
        basis.save_pretrained(tmp_path / f"basis{number}")
    model = adapted(ResiDualConfig(basis=tmp_path / "basis1", save_basis=False), fit=False)
    model.save_pretrained(tmp_path / "adapter")
    edit_config(tmp_path / "adapter", basis=str(tmp_path / "basis2"))
    with pytest.raises(ResiDualError, match=r"belong to a basis of 30 components, and .* has 18"):
        PeftModel.from_pretrained(clip_model(), tmp_path / "adapter")


@pytest.mark.parametrize("components", [None, 3, 0.8])
def test_another_basis_of_the_same_weights_and_shape_is_refused(
    tmp_path: Path, components: int | float | None
) -> None:
    for name, seed in (("one", 0), ("two", 1)):
        basis = SpectralBasis.fit(clip_model(), [pixels(60, seed=seed)], components=5)
        basis.save_pretrained(tmp_path / name)
    config = ResiDualConfig(basis=tmp_path / "one", save_basis=False, components=components)
    model = adapted(config, fit=False)
    model.save_pretrained(tmp_path / "adapter")
    assert list(load_file(tmp_path / "adapter" / WEIGHTS)) == [PREFIX + "gains"]
    count = sum(model.peft_config["default"].component_counts)
    assert (tmp_path / "adapter" / WEIGHTS).stat().st_size < 4 * count + 200
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "adapter")
    assert torch.equal(run_tower(loaded, pixels()), run_tower(model, pixels()))
    two = SpectralBasis.from_pretrained(tmp_path / "two")
    counts = model.peft_config["default"].component_counts
    shutil.rmtree(tmp_path / "one")
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    same = two.truncate(components).component_counts == counts
    message = (
        "belong to another basis .digest [0-9a-f]{12}. than the one from" if same else "belong"
    )
    with pytest.raises(ResiDualError, match=message):
        PeftModel.from_pretrained(clip_model(), tmp_path / "adapter")


def test_the_digest_is_of_the_values_and_not_of_how_they_are_stored(tmp_path: Path) -> None:
    basis = SpectralBasis.fit(clip_model(), [pixels(40)])
    digests = {basis.digest}
    for dtype in (torch.float32, torch.float64):
        basis.save_pretrained(tmp_path, dtype)
        digests.add(SpectralBasis.from_pretrained(tmp_path).digest)
    assert len(digests) == 1
    for other in (
        SpectralBasis.fit(clip_model(), [pixels(40, seed=1)]),
        basis.truncate(3),
        basis.select(["head"]),
    ):
        assert other.digest not in digests


def test_a_basis_that_moved_away_is_missed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SpectralBasis.fit(clip_model(), [pixels(40)]).save_pretrained("bases/mine")
    adapted(ResiDualConfig(basis="bases/mine", save_basis=False), fit=False).save_pretrained("a")
    wanted = run_tower(PeftModel.from_pretrained(clip_model(), "a"), pixels())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    message = (
        r"gains alone .*not to be had from 'bases/mine'.*seen from '.*elsewhere'\), or name wh"
    )
    with pytest.raises(ResiDualError, match=message):
        PeftModel.from_pretrained(clip_model(), tmp_path / "a")
    edit_config(tmp_path / "a", basis=str(tmp_path / "bases" / "mine"))
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path / "a")
    assert torch.equal(run_tower(loaded, pixels()), wanted)


def test_files_with_heads_in_full_are_refused(saved: Path) -> None:
    """As they were written before heads were stored in head space."""
    full = torch.cat(list(adapter_basis(adapted()).components)).contiguous()
    edit_weights(saved, components=full, head_components=None, head_means=None)
    message = "lack residual_peft_head_components.* written before heads were stored in head space"
    with pytest.raises(ResiDualError, match=message):
        PeftModel.from_pretrained(clip_model(), saved)


def test_gains_without_a_basis_that_can_be_had_again_are_not_saved(tmp_path: Path) -> None:
    model = adapted(ResiDualConfig(save_basis=False))
    with pytest.raises(
        ResiDualError, match="'default' has save_basis=False, and its basis was fit"
    ):
        model.save_pretrained(tmp_path)


def test_a_fitted_basis_takes_the_place_of_the_one_by_its_path(tmp_path: Path) -> None:
    SpectralBasis.fit(clip_model(), [pixels(40)]).save_pretrained(tmp_path / "basis")
    model = adapted(ResiDualConfig(basis=tmp_path / "basis", save_basis=False))
    with pytest.raises(ResiDualError, match="its basis was fitted from data"):
        model.save_pretrained(tmp_path / "adapter")


def test_a_basis_of_other_weights_or_units_is_refused(tmp_path: Path) -> None:
    SpectralBasis.fit(clip_model(seed=1), [pixels(40)], ("head",)).save_pretrained(tmp_path)
    config = ResiDualConfig(units=("head",), basis=tmp_path)
    base = clip_model()
    with pytest.raises(ResiDualError, match="the basis belongs to the weights of CLIPModel"):
        get_peft_model(base, config)
    assert not any(isinstance(m, ResiDualReadout) for m in base.modules())
    with pytest.raises(ResiDualError, match=r"the basis has no unit layer0\.mlp"):
        get_peft_model(clip_model(seed=1), ResiDualConfig(basis=tmp_path))
    with pytest.raises(ResiDualError, match="could not find the basis"):
        get_peft_model(base, ResiDualConfig(basis=tmp_path / "nowhere"))


# --- what is not whole, or belongs to others


def peft_load(directory: Path) -> nn.Module:
    return PeftModel.from_pretrained(clip_model(), directory)


def own_load(directory: Path) -> nn.Module:
    return load_adapter(clip_model(), directory)


def load_beside(directory: Path) -> nn.Module:
    return load_adapter(adapted(), directory, "other")


LOADERS = (peft_load, own_load, load_beside)


def refused_by_each(directory: Path, message: str) -> None:
    for load in LOADERS:
        with pytest.raises(ResiDualError, match=message):
            load(directory)


@pytest.mark.parametrize("load", LOADERS)
def test_whole_adapters_are_loaded(saved: Path, load) -> None:
    model = load(saved)
    model.set_adapter("other" if load is load_beside else "default")
    assert torch.equal(run_tower(model, pixels()), run_tower(adapted(), pixels()))


def test_weights_that_are_missing_cut_short_or_of_another_format_are_refused(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    for share in (0.0, 0.2, 0.9, 0.999):
        (saved / WEIGHTS).write_bytes(content[: int(len(content) * share)])
        refused_by_each(saved, r"is not a whole safetensors file .* cut short")
    torch.save({"gains": torch.ones(3)}, saved / WEIGHTS)
    refused_by_each(saved, "is not a whole safetensors file")
    (saved / WEIGHTS).unlink()
    refused_by_each(saved, r"wanted the adapter's weights in .*safetensors', whi")


@table("name", ["gains", "head_components", "head_means", "components", "means", "eigenvalues"])
def test_a_file_that_lacks_a_tensor_is_refused(saved: Path, name: str) -> None:
    content = (saved / WEIGHTS).read_bytes()
    edit_weights(saved, **{name: None})
    refused_by_each(saved, f"lack residual_peft_{name}: the file was changed")
    (saved / WEIGHTS).write_bytes(content)


def test_tensors_of_another_shape_or_not_finite_are_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    edit_weights(saved, gains=torch.ones(3))
    refused_by_each(saved, r"have residual_peft_gains of shape \(3,\)")
    components = tensors[PREFIX + "components"].clone()
    components[1, 2] = float("nan")
    edit_weights(saved, gains=tensors[PREFIX + "gains"], components=components)
    refused_by_each(saved, "NaN or infinite values in residual_peft_components")


def test_other_weights_are_refused_with_both_names(tmp_path: Path) -> None:
    other = clip_model(seed=1)
    other.config._name_or_path = "someone/other-clip"
    get_peft_model(other, ResiDualConfig()).save_pretrained(tmp_path)
    message = "the adapter belongs to the weights of someone/other-clip .* this model, CLIPModel"
    refused_by_each(tmp_path, message)


def test_a_refused_adapter_leaves_the_model_as_it_was(saved: Path) -> None:
    base = clip_model(seed=1)
    with pytest.raises(ResiDualError, match="belongs to the weights of"):
        PeftModel.from_pretrained(base, saved)
    assert not any(isinstance(m, ResiDualReadout) for m in base.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in base.modules())
    model = adapted()
    wanted = run_tower(model, pixels())
    edit_config(saved, fingerprint={**model.peft_config["default"].fingerprint, "digests": {}})
    with pytest.raises(ResiDualError, match="belongs to the weights of"):
        model.load_adapter(saved, "other")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(run_tower(model, pixels()), wanted)


@table(
    "base",
    [lambda: clip_model(Size(readout=12)), clip_vision_model],
    ids=["another width", "no projection"],
)
def test_another_readout_is_refused(saved: Path, base) -> None:
    message = "belongs to CLIPModel with a readout of width 16, but this model, CLIP.*width"
    with pytest.raises(ResiDualError, match=message):
        PeftModel.from_pretrained(base(), saved)


def test_only_the_same_adapter_goes_into_an_adapter_and_says_what_it_is(
    saved: Path, tmp_path: Path
) -> None:
    """PEFT loads the tensors, and keeps the config of the adapter that was there."""
    model = adapted(ResiDualConfig(components=2))
    with pytest.raises(ResiDualError, match=r"its basis is another one.*or fit the same basis"):
        model.load_adapter(saved, "default")
    output, vit = {"units": ("output",)}, EVERY["ViTModel"]
    data = adapted(ResiDualConfig(**output))
    data.save_pretrained(tmp_path / "data")
    get_peft_model(vit(), ResiDualConfig(readout="mean")).save_pretrained(tmp_path / "mean")
    told, images = data.peft_config["default"].fitted, pixels()
    assert told.from_data
    for load in (load_adapter, PeftModel.load_adapter):
        model = get_peft_model(clip_model(), ResiDualConfig(**output))
        load(model, tmp_path / "data", "default")
        assert model.peft_config["default"].fitted == told
        assert relative(run_tower(model, images), run_tower(data, images)) < 1e-6
        others = get_peft_model(clip_model(seed=1), ResiDualConfig(**output)), tmp_path / "data"
        own_readout = get_peft_model(vit(), ResiDualConfig()), tmp_path / "mean"
        for strange, directory in (others, own_readout):
            before = gains_of(strange).clone()
            with pytest.raises(ResiDualError, match="other weights, another side or another read"):
                load(strange, directory, "default")
            assert torch.equal(gains_of(strange), before)
    adapter_basis(data).save_pretrained(tmp_path / "basis")
    named = {**output, "basis": str(tmp_path / "basis"), "save_basis": False}
    get_peft_model(clip_model(), ResiDualConfig(**named)).save_pretrained(tmp_path / "gains")
    alone = get_peft_model(clip_model(), ResiDualConfig(**output, save_basis=False))
    with pytest.raises(ResiDualError, match="gains alone, and they belong to another basis"):
        load_adapter(alone, tmp_path / "gains", "default")


def test_a_config_without_its_weights_says_so(saved: Path, tmp_path: Path) -> None:
    config = ResiDualConfig.from_pretrained(str(saved))
    model = get_peft_model(clip_model(), config)
    for use in (lambda: run_tower(model, pixels()), lambda: model.save_pretrained(tmp_path / "x")):
        with pytest.raises(ResiDualError, match="waits for the weights beside it; load both"):
            use()
    fresh = get_peft_model(clip_model(), config.fresh())
    assert relative(run_tower(fresh, pixels()), run_tower(clip_model(), pixels())) < 1e-6


@table(
    ("changes", "message"),
    [
        ({"component_counts": [5, 5]}, "component_counts for 2 units, and its units are 6"),
        ({"component_counts": None}, "has no component_counts"),
        ({"fingerprint": None}, "no fingerprint"),
        ({"fingerprint": {"name": "x"}}, "a fingerprint has name, architecture"),
        ({"units": ["heads"]}, "units: wanted a tuple"),
        ({"peft_type": "LORA"}, "holds an adapter of type 'LORA'; wanted 'RESIDUAL_PEFT'"),
    ],
)
def test_an_edited_config_is_refused(saved: Path, changes: dict, message: str) -> None:
    text = (saved / CONFIG).read_text()
    edit_config(saved, **changes)
    with pytest.raises(ResiDualError, match=message):
        load_adapter(clip_model(), saved)
    (saved / CONFIG).write_text(text)


def test_a_missing_or_broken_config_is_refused(saved: Path) -> None:
    text = (saved / CONFIG).read_text()
    (saved / CONFIG).write_text(text[: len(text) // 2])
    with pytest.raises(ResiDualError, match=r"adapter_config.json' is not JSON"):
        load_adapter(clip_model(), saved)
    (saved / CONFIG).write_text("[]")
    with pytest.raises(ResiDualError, match="with fields by name, got list"):
        load_adapter(clip_model(), saved)
    (saved / CONFIG).unlink()
    with pytest.raises(ResiDualError, match=r"wanted the file '.*adapter_config.json', which is"):
        load_adapter(clip_model(), saved)
    with pytest.raises(ResiDualError, match="could not find the adapter"):
        load_adapter(clip_model(), saved / "nowhere")


def test_other_methods_are_left_to_peft(tmp_path: Path) -> None:
    lora = get_peft_model(clip_model(), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path)
    with pytest.raises(ResiDualError, match="type 'LORA'; wanted 'RESIDUAL_PEFT'"):
        load_adapter(clip_model(), tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    assert loaded.peft_config["default"].peft_type == "LORA"
