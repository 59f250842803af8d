"""One matrix: models x options x what an adapter in stream mode must be able to do."""

import copy
import io
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    AutoModel,
)

from residual_peft.tuner import ResiDualConfig, fit_bases, gains_by_module, restart_gains
from tests.models import clip_model, pixels
from tests.pairs import dealt, in_turn, table
from tests.tuner.stream_twin import (
    CASES,
    OPTIONS,
    VECTORS,
    Mlp,
    adapted_stream,
    layers_of,
    output,
    random_gains,
    slow,
)
from tests.tuner.twin import relative

F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 1e-5, F64: 1e-10}

# a dual encoder, and Linears of every make: without a bias, transposed, in heads or whole
MAKES = ("CLIPModel", "Dinov2Model, SwiGLU", "plain", "GPT-2", "Llama")
each_make = table("case", MAKES)
FITTED = (False, True)


@table(("case", "option", "fit"), dealt(CASES, OPTIONS, FITTED))
def test_forward_is_the_definition(case: str, option: str, fit: bool) -> None:
    model = adapted_stream(case, dtype=F64, fit=fit, **OPTIONS[option])
    base = CASES[case].build()
    wanted = output(case, slow(model, base), F64)
    assert relative(output(case, model, F64), wanted) < 1e-10
    assert relative(output(case, base.double(), F64), wanted) > 1e-2


@table(("case", "fit"), dealt(CASES, FITTED))
def test_gains_of_one_change_nothing(case: str, fit: bool) -> None:
    model = adapted_stream(case, fit=fit, gains=False)
    assert torch.equal(output(case, model), output(case, CASES[case].build()))


@each_make
def test_starts_away_from_the_identity(case: str) -> None:
    base = output(case, CASES[case].build())
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = adapted_stream(case, fit=False, gains=False, init_weights=False)
        found.append(output(case, model))
    assert torch.equal(found[0], found[1])
    assert relative(found[0], base) > 1e-2
    assert relative(found[0], found[2]) > 1e-2


@in_turn(case=CASES, option=OPTIONS, fit=FITTED, dtype=(F32, F64))
def test_merged_unmerged_and_merged_for_good(
    case: str, option: str, fit: bool, dtype: torch.dtype
) -> None:
    model = adapted_stream(case, dtype=dtype, fit=fit, **OPTIONS[option])
    next(iter(gains_by_module(model).values())).data[0] = 0.0
    wanted, before = output(case, model, dtype), copy.deepcopy(model.state_dict())
    scale = output(case, CASES[case].build().to(dtype), dtype).norm()  # the output may be 0
    model.merge_adapter(safe_merge=True)
    assert float((output(case, model, dtype) - wanted).norm() / scale) < TOLERANCE[dtype]
    for gains in gains_by_module(model).values():
        gains.data.fill_(float("nan"))  # not looked at any more
    assert float((output(case, model, dtype) - wanted).norm() / scale) < TOLERANCE[dtype]
    model.unmerge_adapter()
    for name, tensor in model.state_dict().items():
        assert "gains" in name or torch.equal(tensor, before[name]), name

    model.load_state_dict(before)
    plain = model.merge_and_unload(safe_merge=True)
    assert float((output(case, plain, dtype) - wanted).norm() / scale) < TOLERANCE[dtype]
    assert type(plain) is type(CASES[case].build())
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
    assert not [name for name in plain.state_dict() if "residual" in name]
    assert not hasattr(plain, "peft_config")
    assert "forward" not in plain.__dict__


@in_turn(case=[case for case in CASES if case not in ("plain", "parent's heads")], dtype=(F32, F64))
def test_merged_model_is_loaded_by_transformers_alone(
    case: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    # Llama has no biases, and its class would drop those that a fitted basis adds
    model = adapted_stream(case, dtype=dtype, fit=case != "Llama")
    wanted = output(case, model, dtype)
    plain = model.merge_and_unload()
    plain.save_pretrained(tmp_path)
    own = case.startswith("CLIP") or "ForImageClassification" in case
    kind: Any = type(plain) if own else AutoModel
    loaded = kind.from_pretrained(tmp_path, dtype=dtype).eval()
    if case == "DINOv3ViTModel":  # frequencies stay float32 on loading, .double() casts them
        loaded.rope_embeddings.inv_freq = plain.rope_embeddings.inv_freq
    assert relative(output(case, loaded, dtype), wanted) < TOLERANCE[dtype]


def test_a_linear_without_bias_gets_one_only_while_it_needs_it() -> None:
    model = adapted_stream("plain")
    second = model.base_model.model.second
    wanted = output("plain", model)
    with pytest.warns(UserWarning, match=r"gives a bias to a Linear that has none \(12 -> 6\)"):
        model.merge_adapter()
    assert second.base_layer.bias is not None
    assert relative(output("plain", model), wanted) < 1e-5
    model.unmerge_adapter()
    assert second.base_layer.bias is None
    weights_only = adapted_stream("plain", fit=False).merge_and_unload()
    assert weights_only.second.bias is None


def test_unmerging_is_exact_in_half_precision_again_and_again() -> None:
    model = adapted_stream("CLIPModel", dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        model.merge_adapter()
        model.unmerge_adapter()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@each_make
def test_several_adapters_add_up_and_merge_in_any_order(case: str) -> None:
    model = adapted_stream(case)
    config = model.peft_config["default"].fresh()
    model.add_adapter("other", config)
    random_gains(model, "other", seed=3)
    model.base_model.set_adapter(["default", "other"])
    both, base = output(case, model), output(case, CASES[case].build())
    model.set_adapter("other")
    other = output(case, model)
    assert relative(both, other) > 1e-3
    assert relative(both, base) > 1e-3
    model.merge_adapter(["other"])
    assert relative(output(case, model), other) < 1e-5
    with pytest.warns(UserWarning, match="Already following adapters were merged other"):
        model.merge_adapter(["default"])
    assert relative(output(case, model), both) < 1e-5
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        model.merge_adapter(["default", "other"])
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert torch.equal(output(case, model), other)
    with model.disable_adapter():
        assert torch.equal(output(case, model), base)


def test_disabling_takes_merged_adapters_out() -> None:
    model = adapted_stream("CLIPModel")
    base = output("CLIPModel", clip_model())
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(output("CLIPModel", model), base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_safe_merge_refuses_broken_gains_and_changes_nothing(value: float) -> None:
    model = adapted_stream("CLIPModel")
    before = output("CLIPModel", clip_model())
    last = list(gains_by_module(model).values())[-1]
    last.data[0] = value
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    with pytest.raises(ValueError, match=message):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(output("CLIPModel", model), before)


@pytest.mark.parametrize("case", ["CLIPModel", "plain", "BERT"])
def test_gradients_are_those_of_finite_differences(case: str) -> None:
    model = adapted_stream(case, dtype=F64)
    parameters = gains_by_module(model)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in parameters.values()
    }
    weights = torch.randn(output(case, model, F64).shape, dtype=F64)
    (output(case, model, F64) * weights).sum().backward()
    for path in (next(iter(parameters)), list(parameters)[-1]):
        gains, step = parameters[path], 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                gains[1] += sign * step
                values.append(float((output(case, model, F64) * weights).sum()))
                gains[1] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        assert abs(float(gains.grad[1]) - numeric) < 1e-6 * max(1, abs(numeric)), path


def test_every_layer_learns_and_gradients_enter_the_backbone() -> None:
    model = adapted_stream("CLIPModel")
    images = pixels().requires_grad_()
    model.get_image_features(pixel_values=images).pooler_output.square().sum().backward()
    assert float(images.grad.abs().max()) > 0
    for path, gains in gains_by_module(model).items():
        assert float(gains.grad.abs().min()) > 0, path


@in_turn(case=("CLIPModel", "plain", "BERT"), option=OPTIONS, fit=FITTED)
def test_one_adapter_per_sample(case: str, option: str, fit: bool) -> None:
    model = adapted_stream(case, fit=fit, **OPTIONS[option])  # from weights, they share a basis
    model.add_adapter("other", model.peft_config["default"].fresh())
    random_gains(model, "other", seed=3)
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = output(case, model)
    with model.disable_adapter():
        outputs["__base__"] = output(case, model)
    names = ["other", "__base__", "default", "other", "default"][: len(outputs["other"])]
    inputs: dict[str, Any] = {
        "CLIPModel": {"pixel_values": pixels()},
        "plain": {"x": VECTORS},
        "BERT": CASES["BERT"].batches[0],
    }[case]
    mixed = model(**inputs, adapter_names=names)
    found = mixed if isinstance(mixed, Tensor) else mixed[0]
    if case == "CLIPModel":
        found = mixed.image_embeds
    for row, name in enumerate(names):
        assert relative(found[row], outputs[name][row]) < 1e-5, (row, name)
    again = output(case, model)
    assert torch.equal(again, outputs["other"])


def test_adapter_names_are_checked() -> None:
    model = adapted_stream("plain")
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): nobody"):
        model(x=VECTORS, adapter_names=["nobody"] * 4)
    with pytest.raises(ValueError, match="the same as the number of inputs, but got 3 and 4"):
        model(x=VECTORS, adapter_names=["default"] * 3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="when there are merged adapters"):
        model(x=VECTORS, adapter_names=["default"] * 4)
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(x=VECTORS, adapter_names=["default"] * 4)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@in_turn(case=MAKES, clone=(copy.deepcopy, pickled, saved_whole))
def test_copies(case: str, clone: Any) -> None:
    model = adapted_stream(case)
    wanted = output(case, model)
    twin = clone(model)
    assert torch.equal(output(case, twin), wanted)
    for gains in gains_by_module(model).values():
        gains.data += 1
    assert torch.equal(output(case, twin), wanted)
    twin.merge_adapter()
    merged = clone(twin)
    merged.unmerge_adapter()
    assert torch.equal(output(case, merged), wanted)


@in_turn(dtype=(torch.bfloat16, torch.float16), autocast_adapter_dtype=(True, False))
def test_half_precision_backbones(dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    wanted = output("CLIPModel", adapted_stream("CLIPModel"))
    base = clip_model().to(dtype)
    model = get_peft_model(
        base, ResiDualConfig(mode="stream"), autocast_adapter_dtype=autocast_adapter_dtype
    ).eval()
    fit_bases(model, [pixels(30, seed=5).to(dtype)])
    random_gains(model)
    kept = F32 if autocast_adapter_dtype else dtype
    assert {gains.dtype for gains in gains_by_module(model).values()} == {kept}
    assert {t.dtype for layer in layers_of(model) for t in layer.tensors("default")} == {F32}
    found = output("CLIPModel", model, dtype)
    assert found.dtype == dtype
    assert relative(found, wanted) < 0.1
    model.merge_adapter()
    assert relative(output("CLIPModel", model, dtype), wanted) < 0.1


def test_moving_rounds_no_basis_and_no_gain() -> None:
    model = adapted_stream("CLIPModel")
    kept = [[t.clone() for t in layer.tensors("default")] for layer in layers_of(model)]
    gains = [p.clone() for p in gains_by_module(model).values()]
    model.to(torch.bfloat16)
    assert layers_of(model)[0].weight.dtype == torch.bfloat16
    output("CLIPModel", model, torch.bfloat16)
    model.to(F32)
    for layer, tensors in zip(layers_of(model), kept, strict=True):
        assert all(map(torch.equal, layer.tensors("default"), tensors))
    assert all(map(torch.equal, gains_by_module(model).values(), gains))


def test_double_and_back_while_merged() -> None:
    model = adapted_stream("CLIPModel")
    wanted = output("CLIPModel", model)
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    found = output("CLIPModel", model, F64)
    assert found.dtype == F64
    assert relative(found, wanted) < 1e-5


def test_autocast() -> None:
    model = adapted_stream("CLIPModel")
    wanted = output("CLIPModel", model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output("CLIPModel", model)
    assert relative(found, wanted) < 0.1
    assert relative(found, wanted) > 0
    layer = layers_of(model)[0]
    torch.manual_seed(0)
    inputs = 20 + torch.randn(50, layer.in_features)
    for mean, spread in ((0.0, 1e-3), (20.0, 1e-3), (20.0, 0.5)):  # gains near 1, inputs far from 0
        layer.residual_peft_input_mean["default"].fill_(mean)
        layer.refresh("default")
        gains = layer.residual_peft_gains["default"]
        gains.data = 1 + spread * torch.randn(gains.shape)
        exact = layer.get_delta_weight("default").double() @ (inputs.double() - mean).T
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert relative(layer.delta(inputs, "default"), exact.T) < 0.02


def test_input_casting_can_be_turned_off() -> None:
    model = get_peft_model(Mlp(), ResiDualConfig(mode="stream", target_modules=["first"]))
    random_gains(model)
    layer, seen = model.base_model.model.first, []
    layer.base_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    half = VECTORS.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), disable_input_dtype_casting(model):
        layer(half)
    layer.base_layer.to(torch.bfloat16)
    layer(half)
    with disable_input_dtype_casting(model), pytest.raises(RuntimeError, match="scalar type"):
        layer(half)


def test_compiled() -> None:
    model = adapted_stream("plain", components=0.9)
    wanted = output("plain", model)
    compiled = torch.compile(model, fullgraph=False, backend="aot_eager")
    assert relative(compiled(VECTORS), wanted) < 1e-6
    compiled(VECTORS).sum().backward()
    assert all(p.grad is not None for p in gains_by_module(model).values())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    plain, saving = adapted_stream("CLIPModel"), adapted_stream("CLIPModel")
    saving.base_model.model.vision_model.encoder.gradient_checkpointing = True
    saving.base_model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    saving.base_model.model.enable_input_require_grads() if use_reentrant else None
    for model in (plain, saving):
        model.train()
        output("CLIPModel", model).square().sum().backward()
    for path, gains in gains_by_module(plain).items():
        assert relative(gains_by_module(saving)[path].grad, gains.grad) < 1e-5, path


def test_threads_share_one_model() -> None:
    model = adapted_stream("CLIPModel")
    images = [pixels(seed=seed) for seed in range(8)]
    wanted = [model.get_image_features(pixel_values=x).pooler_output for x in images]
    found: list[Any] = [None] * len(images)

    def work(index: int) -> None:
        found[index] = model.get_image_features(pixel_values=images[index]).pooler_output

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, wanted))


@in_turn(
    chosen=(
        ("CLIPModel", {"units": "head"}),
        ("plain", {"target_modules": "first"}),
        ("GPT-2", {"target_modules": ["attn.c_proj"]}),
        ("Llama", {"target_modules": ["o_proj"]}),
    ),
    option=OPTIONS,
)
def test_converted_to_lora_exactly(chosen: tuple[str, dict], option: str) -> None:
    case, modules = chosen
    model = adapted_stream(case, fit=False, **modules, **OPTIONS[option])
    wanted = output(case, model)
    assert model.supports_lora_conversion()
    ranks = {sum(layer.adapter_settings["default"].counts) for layer in layers_of(model)}
    for rank, exact in ((max(ranks), True), (min(ranks) - 1, False)):  # H·k, and one less
        config, weights = convert_to_lora(model, rank=rank)
        lora = get_peft_model(CASES[case].build(), config).eval()
        assert not set_peft_model_state_dict(lora, weights).unexpected_keys
        assert (relative(output(case, lora), wanted) < 1e-5) == exact


def test_a_fitted_basis_moves_the_bias_which_lora_cannot() -> None:
    model = adapted_stream("CLIPModel")
    with pytest.warns(UserWarning, match="cannot be converted to LoRA: its basis was fitted from"):
        assert not model.supports_lora_conversion()
    warnings.simplefilter("ignore")
    with pytest.raises(TypeError, match="do not support LoRA"):
        convert_to_lora(model, rank=4)


def test_layers_and_modules_are_chosen() -> None:
    def paths(**chosen: Any) -> list[str]:
        model = get_peft_model(clip_model(), ResiDualConfig(mode="stream", **chosen))
        return [
            path.removeprefix("vision_model.encoder.layers.") for path in gains_by_module(model)
        ]

    everything = [
        f"{layer}.{part}" for layer in (0, 1) for part in ("self_attn.out_proj", "mlp.fc2")
    ]
    assert paths() == everything
    assert paths(units="head") == everything[::2]
    assert paths(units="mlp") == everything[1::2]
    assert paths(layers_to_transform=1) == everything[2:]
    assert paths(exclude_modules=["out_proj"]) == everything[1::2]
    assert paths(exclude_modules=r".*layers\.0\..*") == everything[2:]
    assert paths(target_modules=r"vision.*out_proj", layers_to_transform=1) == everything[2:3]
    whole = paths(target_modules="all-linear", layers_to_transform=[1])
    assert whole[-2:] == ["1.mlp.fc1", "1.mlp.fc2"]
    assert all(path.startswith("1.") for path in whole)
    named = paths(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="layers")
    assert [path.rpartition("vision_model")[2] for path in named] == [
        "text_model.encoder.layers.0.self_attn.q_proj",
        "0.self_attn.q_proj",
    ]


@table(
    ("case", "heads"),
    [
        ("CLIPModel", {2, 1}),
        ("plain", {1}),
        ("parent's heads", {3}),
        ("GPT-2", {3, 1}),
        ("Llama", {3, 1}),
        ("BERT", {3, 1}),
        ("ViT", {3}),
    ],
)
def test_heads_are_found(case: str, heads: set[int]) -> None:
    model = adapted_stream(case)
    counts = model.peft_config["default"].component_counts
    assert {len(found) for found in counts.values()} == heads
    for path, found in counts.items():
        attention = any(name in path for name in ("attn", "attention", "out_proj"))
        assert len(found) == (max(heads) if attention else 1), path


def test_gains_restart_as_they_began() -> None:
    model = adapted_stream("CLIPModel", gains=False, gain_init="normal", seed=5)
    first = {path: gains.clone() for path, gains in gains_by_module(model).items()}
    assert len({tuple(gains.tolist()) for gains in first.values()}) == len(first)
    random_gains(model)
    restart_gains(model)
    assert all(torch.equal(gains, first[path]) for path, gains in gains_by_module(model).items())
    restart_gains(model, seed=6)
    assert not any(torch.equal(g, first[path]) for path, g in gains_by_module(model).items())


def test_trains_with_a_loss(tmp_path: Path) -> None:
    model = adapted_stream("CLIPModel", gains=False)
    target = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(pixel_values=pixels()).image_embeds - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    wanted = output("CLIPModel", model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(clip_model(), tmp_path)
    assert torch.equal(output("CLIPModel", loaded), wanted)


@each_make
def test_a_weighted_sum_of_adapters(case: str) -> None:
    model = adapted_stream(case, dtype=F64)
    for seed, name in enumerate(("one", "two")):
        model.add_weighted_adapter(["default"], [1.0], name)
        random_gains(model, name, seed)
    gains = {name: gains_by_module(model, name) for name in ("one", "two")}
    model.add_weighted_adapter(["one", "two"], [0.7, -1.5], "sum")
    for module, found in gains_by_module(model, "sum").items():
        one, two = (gains[name][module].double() for name in ("one", "two"))
        wanted = 1 + 0.7 * (one - 1) - 1.5 * (two - 1)
        assert float((found.detach().double() - wanted).abs().max()) < 1e-6
        assert not found.requires_grad
    model.set_adapter("sum")
    summed = output(case, model, F64)
    model.set_adapter("one")
    assert relative(summed, output(case, model, F64)) > 1e-3
