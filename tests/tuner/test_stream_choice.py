"""Patterns, weighted sums and hot swap for adapters in stream mode."""

from pathlib import Path

import pytest
import torch

from residual_peft.errors import ResiDualError
from residual_peft.tuner import ResiDualConfig, fit_bases, gains_by_module, hotswap_adapter
from tests.models import clip_model, pixels
from tests.tuner.stream_twin import adapted_stream, layers_of, output, random_gains, slow
from tests.tuner.twin import relative

LAYERS = "vision_model.encoder.layers."


def counts(model: object) -> dict[str, list[int]]:
    found = model.peft_config["default"].component_counts
    return {path.removeprefix(LAYERS): heads for path, heads in found.items()}


@pytest.mark.parametrize("fit", [False, True])
def test_units_are_chosen_by_name(fit: bool, tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", fit=fit, unit_pattern=["head1", "layer1.mlp"])
    assert counts(model) == {
        "0.self_attn.out_proj": [0, 12],
        "1.self_attn.out_proj": [0, 12],
        "1.mlp.fc2": [24],
    }
    wanted = output("CLIPModel", slow(model, clip_model()), torch.float64)
    assert relative(output("CLIPModel", model), wanted) < 1e-5
    merged = output("CLIPModel", model)
    model.merge_adapter()
    assert relative(output("CLIPModel", model), merged) < 1e-5


@pytest.mark.parametrize("fit", [False, True])
def test_directions_are_counted_by_unit(fit: bool) -> None:
    model = adapted_stream(
        "CLIPModel",
        fit=fit,
        components=5,
        component_pattern={r"layer0.head\d+": 3, "layer1.head1": 2, "mlp": 7},
    )
    assert counts(model) == {
        "0.self_attn.out_proj": [3, 3],
        "0.mlp.fc2": [7],
        "1.self_attn.out_proj": [5, 2],
        "1.mlp.fc2": [7],
    }
    wanted = output("CLIPModel", slow(model, clip_model()), torch.float64)
    assert relative(output("CLIPModel", model), wanted) < 1e-5


def test_elsewhere_units_are_named_by_their_module() -> None:
    model = adapted_stream(
        "GPT-2", component_pattern={r"h.0.attn.c_proj.head\d": 1, "mlp.c_proj": 4}
    )
    assert model.peft_config["default"].component_counts == {
        "h.0.attn.c_proj": [1, 1, 1],
        "h.0.mlp.c_proj": [4],
        "h.1.attn.c_proj": [4, 4, 4],
        "h.1.mlp.c_proj": [4],
    }


def test_patterns_that_name_nothing_are_refused() -> None:
    for options in ({"unit_pattern": "layer9.*"}, {"component_pattern": {"layer9.mlp": 3}}):
        with pytest.raises(ResiDualError, match="names none of the"):
            adapted_stream("CLIPModel", **options)


@pytest.mark.parametrize("option", [{}, {"granularity": "unit"}, {"components": 0.8}])
def test_weighted_sums(option: dict) -> None:
    model = adapted_stream("CLIPModel", fit=False, **option)
    model.add_adapter("other", model.peft_config["default"].fresh())
    random_gains(model, "other", seed=3)
    model.add_weighted_adapter(["default", "other"], [0.7, -0.2], "sum")
    for layer in layers_of(model):
        one, other, found = (layer.get_delta_weight(n) for n in ("default", "other", "sum"))
        assert relative(found, 0.7 * one - 0.2 * other) < 1e-5
        assert layer.tensors("sum")[0] is layer.tensors("default")[0]
    model.set_adapter("sum")
    wanted = output("CLIPModel", model)
    model.merge_adapter(["sum"])
    assert relative(output("CLIPModel", model), wanted) < 1e-5


def test_sums_over_different_bases_are_refused() -> None:
    model = adapted_stream("CLIPModel")
    model.add_adapter("other", ResiDualConfig(mode="stream"))
    with pytest.raises(ResiDualError, match="'default' and 'other' do not share one basis"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.add_adapter("fewer", ResiDualConfig(mode="stream", units="head"))
    model.add_adapter("more", ResiDualConfig(mode="stream"))
    for pair in (["fewer", "more"], ["more", "fewer"]):
        with pytest.raises(ResiDualError, match="do not share one basis with the same modules"):
            model.add_weighted_adapter(pair, [1.0, 1.0], "sum")
    assert "sum" not in model.peft_config


@pytest.mark.parametrize("fit", [False, True])
def test_hot_swap(fit: bool, tmp_path: Path) -> None:
    source, model = adapted_stream("CLIPModel", fit=fit), adapted_stream("CLIPModel", fit=fit)
    random_gains(source, seed=11)
    wanted = output("CLIPModel", source)
    source.save_pretrained(tmp_path)
    before = {path: gains.data_ptr() for path, gains in gains_by_module(model).items()}
    hotswap_adapter(model, tmp_path)
    assert torch.equal(output("CLIPModel", model), wanted)
    assert {path: gains.data_ptr() for path, gains in gains_by_module(model).items()} == before


def test_hot_swap_of_another_basis_is_refused(tmp_path: Path) -> None:
    adapted_stream("CLIPModel").save_pretrained(tmp_path)
    with pytest.raises(ResiDualError, match="belong to another basis"):
        hotswap_adapter(adapted_stream("CLIPModel", fit=False), tmp_path)
    model = adapted_stream("CLIPModel")
    fit_bases(model, [pixels(31, seed=8)])
    with pytest.raises(ResiDualError, match="belong to another basis"):
        hotswap_adapter(model, tmp_path)
