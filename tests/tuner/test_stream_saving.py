"""Adapters in stream mode on disk, side by side, and where they must be refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from residual_peft.bases.decomposition import decompose
from residual_peft.errors import ResiDualError
from residual_peft.tuner import (
    ResiDualConfig,
    fit_bases,
    gains_by_module,
    gains_by_unit,
    gains_of,
    hotswap_adapter,
    load_adapter,
    readout_state,
)
from tests.models import (
    clip_model,
    clip_vision_model_with_projection,
    pixels,
    transformers_admits_peft,
)
from tests.pairs import in_turn, table
from tests.tuner.stream_twin import (
    CASES,
    OPTIONS,
    VECTORS,
    Attention,
    Mlp,
    adapted_stream,
    layers_of,
    output,
    random_gains,
)
from tests.tuner.twin import relative

WEIGHTS = "adapter_model.safetensors"


@in_turn(case=CASES, option=OPTIONS, low_cpu_mem_usage=(False, True))
def test_saved_and_loaded(
    case: str, option: str, low_cpu_mem_usage: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    model = adapted_stream(case, **OPTIONS[option])
    wanted = output(case, model)
    model.save_pretrained(tmp_path)
    # what is in the file is not computed again
    monkeypatch.setattr("residual_peft.tuner.stream.placement.weight_basis", None)
    loaded = PeftModel.from_pretrained(
        CASES[case].build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    # not bit for bit: where a tensor begins in memory decides which kernel multiplies it
    assert relative(output(case, loaded), wanted) < 1e-6
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())
    config = loaded.peft_config["default"]
    assert config.component_counts == model.peft_config["default"].component_counts
    assert (config.basis_source, config.mode) == ("data", "stream")
    again = PeftModel.from_pretrained(CASES[case].build(), tmp_path, is_trainable=True)
    output(case, again).sum().backward()
    assert all(p.grad is not None for p in gains_by_module(again).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_saved_and_loaded_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", dtype=dtype)
    wanted = output("CLIPModel", model, dtype)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model().to(dtype), tmp_path)
    assert torch.equal(output("CLIPModel", loaded, dtype), wanted)


def test_loaded_by_name_of_the_other_class_and_merged(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel")
    wanted = output("CLIPModel", model)
    model.save_pretrained(tmp_path)
    image_side = clip_vision_model_with_projection()
    image_side.load_state_dict(clip_model().state_dict(), strict=False)
    loaded = load_adapter(image_side, tmp_path)
    found = output("CLIPVisionModelWithProjection", loaded)
    assert torch.equal(found, wanted)
    merged = loaded.merge_and_unload()
    assert relative(output("CLIPVisionModelWithProjection", merged), wanted) < 1e-5


def test_gains_alone_where_the_weights_give_the_basis(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", fit=False, save_basis=False)
    wanted = output("CLIPModel", model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert all(name.endswith("gains") for name in tensors)
    assert sum(t.numel() for t in tensors.values()) == 2 * (24 + 24)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    assert relative(output("CLIPModel", loaded), wanted) < 1e-6


def test_gains_alone_of_a_fitted_basis_are_refused(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", save_basis=False)
    with pytest.raises(
        ResiDualError, match=r"save_basis=False, and its basis was fitted from data"
    ):
        model.save_pretrained(tmp_path)


def test_gains_alone_over_the_basis_of_another_adapter(tmp_path: Path) -> None:
    source, alone = tmp_path / "source", tmp_path / "alone"
    whole = adapted_stream("CLIPModel")
    whole.save_pretrained(source)
    options = {"mode": "stream", "basis": str(source), "save_basis": False}
    model = get_peft_model(clip_model(), ResiDualConfig(**options))
    random_gains(model, "default", 7)
    wanted = output("CLIPModel", model)
    for layer, other in zip(layers_of(model), layers_of(whole), strict=True):
        pairs = zip(layer.tensors("default"), other.tensors("default"), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    model.save_pretrained(alone)
    tensors = load_file(alone / WEIGHTS)
    assert all(name.endswith("gains") for name in tensors)
    loaded = PeftModel.from_pretrained(clip_model(), alone)
    assert torch.equal(output("CLIPModel", loaded), wanted)
    loaded.load_adapter(str(alone), "second")
    for layer in layers_of(loaded):  # a second adapter costs its gains alone
        one, other = (layer.tensors(name) for name in ("default", "second"))
        assert all(a is b for a, b in zip(one, other, strict=True))
    hotswap_adapter(loaded, source)
    assert torch.equal(output("CLIPModel", loaded), output("CLIPModel", whole))


def test_a_named_basis_may_be_cut(tmp_path: Path) -> None:
    whole = adapted_stream("CLIPModel")
    whole.save_pretrained(tmp_path)
    for components in (1, 0.6):
        options = {"mode": "stream", "components": components}
        named = get_peft_model(clip_model(), ResiDualConfig(basis=str(tmp_path), **options))
        for layer, other in zip(layers_of(named), layers_of(whole), strict=True):
            basis = other.basis("default")
            wanted = basis.truncate([components] * len(basis.heads))
            assert layer.basis("default").component_counts == wanted.component_counts
            for one, head in zip(layer.basis("default").heads, wanted.heads, strict=True):
                assert torch.allclose(one.components, head.components, atol=1e-6)
    named = get_peft_model(
        clip_model(), ResiDualConfig(mode="stream", basis=str(tmp_path), save_basis=False)
    )
    fit_bases(named, [pixels(30, seed=7)])  # it is no longer the one that was named
    with pytest.raises(ResiDualError, match=r"save_basis=False, and its basis was fitted from"):
        named.save_pretrained(tmp_path / "again")


def test_another_basis_than_the_gains_own_is_refused(tmp_path: Path) -> None:
    source, alone = tmp_path / "source", tmp_path / "alone"
    adapted_stream("CLIPModel").save_pretrained(source)
    options = {"mode": "stream", "basis": str(source), "save_basis": False}
    get_peft_model(clip_model(), ResiDualConfig(**options)).save_pretrained(alone)
    other = get_peft_model(clip_model(), ResiDualConfig(mode="stream"))
    fit_bases(other, [pixels(16, seed=99)])
    other.save_pretrained(source)
    with pytest.raises(ResiDualError, match="gains belong to another basis than that of"):
        PeftModel.from_pretrained(clip_model(), alone)
    shutil.rmtree(source)
    with pytest.raises(ResiDualError, match="there is none to be had from"):
        PeftModel.from_pretrained(clip_model(), alone)
    adapted_stream("CLIPModel", fit=False, save_basis=False).save_pretrained(alone)
    config = json.loads((alone / "adapter_config.json").read_text())
    path, (count,) = next(iter(config["component_counts"].items()))
    config["component_counts"][path] = [count - 1]
    (alone / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(alone / "adapter_model.safetensors")
    gains = f"base_model.model.{path}.residual_peft_gains"
    weights[gains] = weights[gains][1:].clone()
    save_file(weights, alone / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ResiDualError, match=rf"basis of {count - 1} components .* give {count}:"):
        PeftModel.from_pretrained(clip_model(), alone)


@table(
    ("options", "message"),
    [
        ({"mode": "readout"}, "is of mode 'readout'; wanted one in stream mode"),
        ({"mode": "stream", "save_basis": False}, "holds its gains alone; wanted one in stream"),
        ({"mode": "stream", "layers_to_transform": [0]}, "knows nothing of .*layers.1"),
    ],
)
def test_what_is_no_basis_for_stream_mode_is_refused(
    options: dict, message: str, tmp_path: Path
) -> None:
    get_peft_model(clip_model(), ResiDualConfig(**options)).save_pretrained(tmp_path)
    model = clip_model()
    with pytest.raises(ResiDualError, match=message):
        get_peft_model(model, ResiDualConfig(mode="stream", basis=str(tmp_path)))
    assert not layers_of(model)


def test_a_named_basis_of_other_weights_is_refused(tmp_path: Path) -> None:
    adapted_stream("CLIPModel").save_pretrained(tmp_path)
    other = clip_model(seed=5)
    with pytest.raises(ResiDualError, match="basis of"):
        get_peft_model(other, ResiDualConfig(mode="stream", basis=str(tmp_path)))


def test_the_file_is_small() -> None:
    """Head space: K·e numbers for a layer's heads instead of K·D."""
    model = adapted_stream("CLIPModel", units="head")
    layer = layers_of(model)[0]
    state = get_peft_model_state_dict(model)
    directions = [t for name, t in state.items() if "directions" in name]
    assert [tuple(t.shape) for t in directions] == [(24, 12), (24, 12)]
    assert layer.state("default").directions.shape == (24, 24)
    assert not [name for name in state if "components" in name or "maps" in name]


@table("case", ["CLIPModel", "plain"])
@table(
    "change",
    ["gains", "directions", "input_mean", "eigenvalues", "total_variance"],
)
def test_missing_tensors_are_refused(case: str, change: str, tmp_path: Path) -> None:
    adapted_stream(case).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    gone = sorted(name for name in tensors if name.endswith(change))[0]
    del tensors[gone]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ResiDualError, match=f"lack residual_peft_{change}: the file"):
        PeftModel.from_pretrained(CASES[case].build(), tmp_path)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    adapted_stream("CLIPModel").save_pretrained(tmp_path)
    other = clip_model(seed=1)
    with pytest.raises(ResiDualError, match="the adapter belongs to the weights of CLIPModel"):
        PeftModel.from_pretrained(other, tmp_path)
    assert not layers_of(other)


def test_edited_files_are_refused(tmp_path: Path) -> None:
    adapted_stream("plain").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())

    def refused(message: str, **changes: Any) -> None:
        path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(ResiDualError, match=message):
            PeftModel.from_pretrained(Mlp(), tmp_path)

    refused(
        "hold .*second.residual_peft_.*no part of this adapter", component_counts={"first": [10]}
    )
    refused("component_counts that are not sorted by module", component_counts=[10, 6])
    refused("of shape", component_counts={"first": [9], "second": [6]})
    path.write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ResiDualError, match="not a whole safetensors file"):
        PeftModel.from_pretrained(Mlp(), tmp_path)


@pytest.mark.parametrize("options", [{}, {"fit": False, "save_basis": False}])
def test_a_saved_config_alone_waits_for_its_weights(options: dict, tmp_path: Path) -> None:
    source = adapted_stream("plain", **options)
    source.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path))
    model = get_peft_model(CASES["plain"].build(), config)
    with pytest.raises(ResiDualError, match="'default' was made from a saved adapter's config"):
        model(VECTORS)
    with pytest.raises(ResiDualError, match="waits for the weights"):
        model.merge_adapter()
    with pytest.raises(ResiDualError, match="waits for the weights"):
        model.save_pretrained(tmp_path / "again")
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert torch.equal(model(VECTORS), source(VECTORS))
    fresh = get_peft_model(CASES["plain"].build(), config.fresh())
    assert torch.equal(fresh(VECTORS), CASES["plain"].build()(VECTORS))


def test_state_dicts_go_around() -> None:
    model, other = adapted_stream("CLIPModel"), adapted_stream("CLIPModel", fit=False)
    wanted = output("CLIPModel", model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(output("CLIPModel", other), wanted)
    # an adapter of the weights that comes after is not given the loaded basis, which has a mean
    other.add_adapter("second", ResiDualConfig(mode="stream"))
    assert not any(layer.tensors("second")[1].any() for layer in layers_of(other))


def test_injected_without_a_peft_model() -> None:
    config = ResiDualConfig(mode="stream", target_modules=["first", "second"], init_weights=False)
    torch.manual_seed(3)
    model = inject_adapter_in_model(config, CASES["plain"].build())
    again = inject_adapter_in_model(config, CASES["plain"].build())
    state = get_peft_model_state_dict(model)
    assert not torch.equal(model(VECTORS), again(VECTORS))
    set_peft_model_state_dict(again, state)
    assert torch.equal(model(VECTORS), again(VECTORS))


@transformers_admits_peft
def test_transformers_own_way(tmp_path: Path) -> None:
    """`add_adapter`, `save_pretrained` and `load_adapter` of a plain transformers model."""
    model, base = clip_model(), output("CLIPModel", clip_model())
    model.add_adapter(ResiDualConfig(mode="stream", init_weights=False), "mine")
    wanted = output("CLIPModel", model)
    assert relative(wanted, base) > 1e-2
    model.disable_adapters()
    assert torch.equal(output("CLIPModel", model), base)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    loaded = clip_model()
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(output("CLIPModel", loaded), wanted)
    assert torch.equal(
        output("CLIPModel", PeftModel.from_pretrained(clip_model(), tmp_path)), wanted
    )
    fit_bases(loaded, [pixels(20)])  # its gains are drawn anew
    assert relative(output("CLIPModel", loaded), base) > 1e-2
    loaded.delete_adapter("default")
    assert torch.equal(output("CLIPModel", loaded), base)


def storages(model: nn.Module) -> int:
    """Numbers held by the adapters, each storage counted once."""
    tensors = [t for name, t in buffers_of(model)]
    return sum({t.untyped_storage().data_ptr(): t.numel() for t in tensors}.values())


def buffers_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, t) for name, t in model.named_buffers() if "residual_peft" in name]


@pytest.mark.parametrize("fit", [False, True])
def test_a_hundred_adapters_cost_a_hundred_gain_vectors(
    fit: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    model = adapted_stream("CLIPModel", fit=fit)
    model.save_pretrained(tmp_path)
    alone = storages(model)
    for index in range(20):
        model.load_adapter(tmp_path, f"loaded{index}")
    monkeypatch.setattr("residual_peft.tuner.stream.placement.weight_basis", None)
    if not fit:
        for index in range(79):
            model.add_adapter(f"added{index}", model.peft_config["default"].fresh())
    assert storages(model) == alone
    model.to(torch.bfloat16)
    assert storages(model) == alone
    model.double()
    assert storages(model) == 1 * alone
    random_gains(model, "loaded3", seed=9)
    model.set_adapter("loaded3")
    one = output("CLIPModel", model, torch.float64)
    model.delete_adapter("default")
    assert torch.equal(output("CLIPModel", model, torch.float64), one)


def test_fitting_one_adapter_leaves_the_others(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", fit=False)
    wanted = output("CLIPModel", model)
    model.add_adapter("other", model.peft_config["default"].fresh())
    fit_bases(model, [pixels(20)], "other")
    assert torch.equal(output("CLIPModel", model), wanted)
    assert model.peft_config["default"].basis_source == "weights"
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    assert torch.equal(output("CLIPModel", loaded), wanted)


def test_a_second_adapter_may_come_while_the_first_is_merged(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel")
    model.merge_adapter()
    model.add_adapter("other", ResiDualConfig(mode="stream"))
    plain = get_peft_model(clip_model(), ResiDualConfig(mode="stream"))
    for layer, wanted in zip(layers_of(model), layers_of(plain), strict=True):
        assert all(map(torch.equal, layer.tensors("other"), wanted.tensors("default")))
    model.save_pretrained(tmp_path / "saved")
    PeftModel.from_pretrained(clip_model(), tmp_path / "saved" / "other")
    source = adapted_stream("CLIPModel")
    source.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "third")
    model.unmerge_adapter()
    model.set_adapter("third")
    assert torch.equal(output("CLIPModel", model), output("CLIPModel", source))


def test_adapters_for_different_layers_and_modules_to_save(tmp_path: Path) -> None:
    config = ResiDualConfig(mode="stream", target_modules=["first"], modules_to_save=["second"])
    model = get_peft_model(CASES["plain"].build(), config)
    with torch.no_grad():
        model.base_model.model.second.modules_to_save["default"].weight.mul_(2)
    random_gains(model)
    wanted = model(VECTORS)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CASES["plain"].build(), tmp_path)
    assert torch.equal(loaded(VECTORS), wanted)
    assert list(gains_by_module(loaded)) == ["first"]


def test_deleting_leaves_nothing_behind() -> None:
    model = adapted_stream("CLIPModel")
    model.add_adapter("other", model.peft_config["default"].fresh())
    model.delete_adapter("other")
    for layer in layers_of(model):
        assert "other" not in layer._all_available_adapter_names()
    assert not [name for name in model.state_dict() if "other" in name]


class Quantised(nn.Linear):
    """Stands for bitsandbytes' and others' layers, which are Linears by inheritance."""


def with_module(module: nn.Module) -> nn.Module:
    model = Mlp()
    model.first = module
    return model


def with_attention() -> nn.Module:
    model = Mlp()
    model.attention = nn.MultiheadAttention(8, 2)
    return model


@table(
    ("model", "target", "message"),
    [
        (
            with_attention(),
            ["out_proj"],
            r"attention.out_proj is inside the nn.MultiheadAttention 'attention'.*exclude_modules",
        ),
        (with_attention(), ["attention"], r"attention is a .*MultiheadAttention and is not supp"),
        (with_module(Quantised(10, 12)), ["first"], r"first is a .*Quantised and is not supported"),
        (with_module(nn.Conv2d(1, 1, 1)), ["first"], r"first is a torch.*Conv2d and is not supp"),
        (with_module(nn.Embedding(4, 5)), ["first"], r"first is a torch.*Embedding and is not"),
        (
            torch.ao.quantization.quantize_dynamic(Mlp(), {nn.Linear}),
            ["first"],
            r"first is a torch.*Linear and is not supported.*unquantised",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_modules(model: nn.Module, target: list[str], message: str) -> None:
    with pytest.raises(ResiDualError, match=message):
        get_peft_model(model, ResiDualConfig(mode="stream", target_modules=target))
    assert not layers_of(model)


def test_all_linear_says_what_to_leave_out() -> None:
    config, model = ResiDualConfig(mode="stream", target_modules="all-linear"), with_attention()
    with pytest.raises(ResiDualError, match=r"attention\.out_proj is inside"):
        get_peft_model(model, config)
    assert type(model.first) is nn.Linear  # it came before the one that was refused
    config = ResiDualConfig(
        mode="stream", target_modules="all-linear", exclude_modules=["out_proj"]
    )
    model = get_peft_model(with_attention(), config)
    assert list(gains_by_module(model)) == ["first", "second"]
    model.add_adapter("other", config)
    assert list(gains_by_module(model, "other")) == ["first", "second"]


def test_a_refused_second_adapter_leaves_the_first() -> None:
    model = get_peft_model(
        with_attention(), ResiDualConfig(mode="stream", target_modules=["first"])
    )
    random_gains(model)
    wanted = model(VECTORS)
    both = ResiDualConfig(mode="stream", target_modules=["first", "out_proj"])
    with pytest.raises(ResiDualError, match="is inside"):
        model.add_adapter("other", both)
    assert torch.equal(model(VECTORS), wanted)
    assert [list(layer.adapter_settings) for layer in layers_of(model)] == [["default"]]


def test_a_whole_number_weight_is_refused() -> None:
    linear = nn.Linear(10, 12)
    linear.weight = nn.Parameter(torch.zeros(12, 10, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ResiDualError, match=r"first keeps a Tensor of torch.int8, shape \(12, 10\)"
    ):
        get_peft_model(with_module(linear), ResiDualConfig(mode="stream", target_modules=["first"]))


def test_an_unknown_model_needs_target_modules() -> None:
    with pytest.raises(ResiDualError, match=r"(?s)architecture Mlp is not known.*target_modules="):
        get_peft_model(Mlp(), ResiDualConfig(mode="stream"))
    with pytest.raises(ResiDualError, match=r"layers_to_transform=\[7\].*has 2 layers, 0 to 1"):
        get_peft_model(clip_model(), ResiDualConfig(mode="stream", layers_to_transform=7))


@pytest.mark.parametrize("build", [Mlp, clip_model])
def test_readout_mode_names_stream_mode_where_modules_were_named(build: Any) -> None:
    with pytest.raises(ResiDualError, match=r"(?s)target_modules=\['first'\].*mode='stream'"):
        get_peft_model(build(), ResiDualConfig(target_modules=["first"]))


def test_readout_mode_cannot_merge_and_says_which_mode_can() -> None:
    model = get_peft_model(clip_model(), ResiDualConfig())
    with pytest.raises(ResiDualError, match=r"cannot be merged.*mode='stream' merges"):
        model.merge_and_unload()


@pytest.mark.parametrize(("first", "second"), [("readout", "stream"), ("stream", "readout")])
def test_one_model_has_one_mode(first: str, second: str) -> None:
    model = get_peft_model(clip_model(), ResiDualConfig(mode=first))
    before = list(model.state_dict())
    with pytest.raises(ResiDualError, match=f"mode='{first}' like 'default'.*mode='{second}'"):
        model.add_adapter("other", ResiDualConfig(mode=second))
    assert list(model.state_dict()) == before
    assert list(model.peft_config) == ["default"]


def test_the_unadapted_model_can_still_be_taken_apart() -> None:
    model = adapted_stream("CLIPModel")
    wanted, found = decompose(clip_model(), pixels()), decompose(model, pixels())
    assert torch.equal(found.contributions, wanted.contributions)
    merged = output("CLIPModel", model)
    model.merge_adapter()
    assert relative(decompose(model, pixels()).readout, merged) < 1e-5


def test_what_only_readout_mode_has_is_refused_with_the_reason() -> None:
    model = adapted_stream("CLIPModel")
    for ask in (gains_of, readout_state, gains_by_unit):
        with pytest.raises(ResiDualError, match="'default' is in stream mode, which has gains in"):
            ask(model)


def test_conv1d_is_a_linear_lying_down() -> None:
    linear, lying = nn.Linear(12, 8), Conv1D(8, 12)
    with torch.no_grad():
        lying.weight.copy_(linear.weight.T)
        lying.bias.copy_(linear.bias)
    models = [Attention(), Attention()]
    models[1].load_state_dict(models[0].state_dict())
    models[0].out_proj, models[1].out_proj = linear, lying
    outputs = []
    for base in models:
        model = get_peft_model(base, ResiDualConfig(mode="stream", target_modules=["out_proj"]))
        fit_bases(model, [VECTORS[..., :8]])
        random_gains(model)
        outputs += [model(VECTORS[..., :8])]
        outputs += [model.merge_and_unload()(VECTORS[..., :8])]
    assert all(relative(found, outputs[0]) < 1e-6 for found in outputs)
