"""What PEFT's and transformers' users expect of every method, on this one."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

from residual_peft.errors import ResiDualError
from residual_peft.towers.running import run_tower
from residual_peft.tuner import ResiDualConfig, ResiDualReadout, fit_bases, gains_of, readout_state
from tests.models import BUILDERS, clip_model, pixels, transformers_admits_peft
from tests.pairs import in_turn, table
from tests.tuner.twin import IMAGES, adapted, expected, randomize_gains, relative

CONFIGS = {
    "default": lambda: ResiDualConfig(),
    "star": lambda: ResiDualConfig.paper("residual_star"),
    "coarse": lambda: ResiDualConfig.paper("coarse"),
    "output": lambda: ResiDualConfig.paper("rd_y"),
}
MATRIX = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapted().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def _forget_compiled_graphs() -> None:
    torch._dynamo.reset()  # or all tests together reach the limit of recompilations


def plain() -> torch.Tensor:
    return run_tower(clip_model(), pixels())


# --- torch.compile, checkpointing, precision


@pytest.mark.parametrize(
    ("builder", "kind"),
    [
        *((builder, "default") for builder in BUILDERS),
        ("CLIPModel", "star"),
        ("CLIPModel", "output"),
    ],
)
def test_compiled_in_one_graph_it_equals_eager(kind: str, builder: str) -> None:
    model = adapted(CONFIGS[kind](), builder=builder)
    wanted = run_tower(model, pixels())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # no graph break
    output = compiled(pixel_values=pixels())
    found = output.image_embeds if "image_embeds" in output else output.pooler_output
    assert relative(found.detach(), wanted.detach()) < 1e-6
    gains_of(model).data.mul_(0.5)  # read at every call, not when it was compiled
    output = compiled(pixel_values=pixels())
    again = output.image_embeds if "image_embeds" in output else output.pooler_output
    assert relative(again.detach(), run_tower(model, pixels()).detach()) < 1e-6
    assert relative(again.detach(), wanted.detach()) > 1e-3


def test_compiled_gradients_equal_eager() -> None:
    model = adapted().train()
    run_tower(model, pixels()).square().sum().backward()
    wanted = gains_of(model).grad.clone()
    gains_of(model).grad = None
    compiled = torch.compile(model, backend="aot_eager")
    compiled(pixel_values=pixels()).image_embeds.square().sum().backward()
    assert relative(gains_of(model).grad, wanted) < 1e-5


def test_compiled_with_an_adapter_per_sample() -> None:
    model = adapted()
    model.add_adapter("other", ResiDualConfig(units=("head",)))
    randomize_gains(model, "other")
    names = ["default", "other", "__base__", "other", "default"]
    wanted = model(pixel_values=pixels(), adapter_names=names).image_embeds
    compiled = torch.compile(model, backend="aot_eager")
    found = compiled(pixel_values=pixels(), adapter_names=names).image_embeds
    assert relative(found.detach(), wanted.detach()) < 1e-6


@in_turn(kind=CONFIGS, reentrant=(False, True))
def test_gradient_checkpointing_changes_nothing(kind: str, reentrant: bool) -> None:
    model = adapted(CONFIGS[kind]()).train()
    run_tower(model, pixels()).square().sum().backward()
    wanted = gains_of(model).grad.clone()
    gains_of(model).grad = None
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads() if reentrant else None
    assert model.is_gradient_checkpointing
    run_tower(model, pixels()).square().sum().backward()
    assert relative(gains_of(model).grad, wanted) < 1e-6


@in_turn(kind=CONFIGS, dtype=(torch.bfloat16, torch.float16), autocast=(True, False))
def test_half_precision_backbones(kind: str, dtype: torch.dtype, autocast: bool) -> None:
    base = clip_model().to(dtype)
    model = get_peft_model(base, CONFIGS[kind](), autocast_adapter_dtype=autocast)
    fit_bases(model, [pixels(IMAGES, seed=5).to(dtype)])
    kept = torch.float32 if autocast else dtype
    assert gains_of(model).dtype == kept
    randomize_gains(model)
    gains_of(model).data = gains_of(model).data.to(kept)
    found = run_tower(model.eval(), pixels().to(dtype))
    assert found.dtype == dtype
    rounded = clip_model().to(dtype).double()
    wanted = expected(rounded, model, pixels().to(dtype).double())
    assert relative(found, wanted) < (0.05 if dtype == torch.bfloat16 else 0.01)
    found.float().square().sum().backward()
    assert bool(gains_of(model).grad.isfinite().all())


# --- state dicts, copies


@in_turn(kind=CONFIGS, builder=BUILDERS)
def test_a_whole_state_dict_goes_into_a_second_model(kind: str, builder: str) -> None:
    model, other = (
        adapted(CONFIGS[kind](), builder=builder),
        adapted(CONFIGS[kind](), builder=builder),
    )
    if kind != "star":  # whose number of directions depends on the images
        fit_bases(other, [pixels(IMAGES, seed=9)])
    randomize_gains(other, seed=11)
    before = run_tower(other, pixels())
    other.load_state_dict(model.state_dict())
    assert torch.equal(run_tower(other, pixels()), run_tower(model, pixels()))
    assert not torch.equal(run_tower(other, pixels()), before)


@in_turn(kind=CONFIGS, low_cpu_mem_usage=(False, True))
def test_an_adapters_state_dict_goes_out_and_in(kind: str, low_cpu_mem_usage: bool) -> None:
    model = adapted(CONFIGS[kind]())
    model.add_adapter("other", ResiDualConfig(units=("head",)))
    tensors = get_peft_model_state_dict(model)
    assert not [key for key in tensors if "other" in key or "default" in key]
    other = adapted(CONFIGS[kind]())
    gains_of(other).data.fill_(0.25)
    result = set_peft_model_state_dict(other, tensors, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert torch.equal(run_tower(other, pixels()), run_tower(model, pixels()))
    assert gains_of(other).data_ptr() != gains_of(model).data_ptr() or low_cpu_mem_usage


def test_moved_copied_and_pickled_it_says_the_same() -> None:
    model = adapted()
    model.add_adapter("other", ResiDualConfig(units=("head",), components=2))
    names = ["default", "other", "__base__", "other", "default"]
    wanted = model(pixel_values=pixels(), adapter_names=names).image_embeds
    clones = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model).to(torch.float64).to(torch.float32),
        copy.deepcopy(model).to("cpu"),
    ]
    for clone in clones:
        found = clone(pixel_values=pixels(), adapter_names=names).image_embeds
        assert relative(found.detach(), wanted.detach()) < 1e-6


# --- injected by PEFT into a bare model


@MATRIX
def test_injected_into_a_bare_model(kind: str) -> None:
    model = inject_adapter_in_model(CONFIGS[kind](), clip_model(), "mine")
    assert isinstance(model, CLIPModel)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "visual_projection.residual_peft_gains.mine"
    ]
    layer = next(m for m in model.modules() if isinstance(m, ResiDualReadout))
    randomized = layer.residual_peft_gains["mine"]
    randomized.data.normal_(1, 1)
    assert relative(run_tower(model, pixels()).detach(), plain()) > 1e-3


@table("low_cpu_mem_usage", [False, True])
@table("by_state_dict", [False, True])
def test_a_saved_adapter_is_injected(
    saved: Path, low_cpu_mem_usage: bool, by_state_dict: bool
) -> None:
    tensors = load_file(saved / "adapter_model.safetensors")
    bare = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    model = inject_adapter_in_model(
        PeftConfig.from_pretrained(saved),
        clip_model(),
        low_cpu_mem_usage=low_cpu_mem_usage,
        state_dict=bare if by_state_dict else None,
    )
    result = set_peft_model_state_dict(model, bare, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert torch.equal(run_tower(model, pixels()), run_tower(adapted(), pixels()))
    assert get_peft_model_state_dict(model).keys() == bare.keys()


# --- transformers' own integration: import this package first, and it has what LoRA has, but for
# hot-swapping (LoRA alone) and merging (readout mode has no weights to merge into)


@transformers_admits_peft
def test_transformers_loads_sets_switches_and_deletes(saved: Path) -> None:
    wanted = run_tower(adapted(), pixels())
    model = clip_model()
    model.load_adapter(saved, adapter_name="first")
    assert torch.equal(run_tower(model, pixels()), wanted)
    model.load_adapter(saved, adapter_name="second")
    assert model.active_adapters() == ["second"] or model.active_adapters() == ["first"]
    layer = next(m for m in model.modules() if isinstance(m, ResiDualReadout))
    layer.residual_peft_gains["second"].data.fill_(0.5)
    model.set_adapter("second")
    assert relative(run_tower(model, pixels()), wanted) > 1e-3
    assert layer.state("second") is layer.state("first")  # one basis in memory
    model.set_adapter("first")
    assert torch.equal(run_tower(model, pixels()), wanted)
    model.disable_adapters()
    assert torch.equal(run_tower(model, pixels()), plain())
    model.enable_adapters()
    assert torch.equal(run_tower(model, pixels()), wanted)
    model.delete_adapter("second")
    assert torch.equal(run_tower(model, pixels()), wanted)
    assert not [key for key in model.state_dict() if "second" in key]
    model.delete_adapter("first")
    assert torch.equal(run_tower(model, pixels()), plain())


@transformers_admits_peft
def test_transformers_adds_trains_and_saves(tmp_path: Path) -> None:
    model = clip_model()
    model.add_adapter(ResiDualConfig(), "mine")
    assert torch.equal(run_tower(model, pixels()), plain())
    assert fit_bases(model, [pixels(IMAGES, seed=5)], "mine").num_samples == IMAGES
    gains, before = gains_of(model, "mine"), gains_of(model, "mine").detach().clone()
    assert [p for p in model.parameters() if p.requires_grad] == [gains]
    model(pixel_values=pixels()).image_embeds.square().sum().backward()
    torch.optim.SGD([gains], 0.1).step()
    assert not torch.equal(gains.detach(), before)
    wanted = run_tower(model, pixels()).detach()
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    other = clip_model()
    other.load_adapter(tmp_path)
    assert torch.equal(run_tower(other, pixels()), wanted)
    assert torch.equal(
        run_tower(PeftModel.from_pretrained(clip_model(), tmp_path), pixels()), wanted
    )


def test_transformers_from_pretrained_finds_the_base_model(saved: Path, tmp_path: Path) -> None:
    clip_model().save_pretrained(tmp_path / "base")
    shutil.copytree(saved, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = {**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "base")}
    path.write_text(json.dumps(config))
    model = CLIPModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(run_tower(model, pixels()), run_tower(adapted(), pixels()))


def test_transformers_refuses_what_it_keeps_to_lora(saved: Path) -> None:
    model = clip_model()
    model.load_adapter(saved, adapter_name="default")
    with pytest.raises(ValueError, match="Hotswapping is currently only supported for LoRA"):
        model.load_adapter(saved, adapter_name="default", hotswap=True)


def test_a_tensor_that_transformers_did_not_find_is_missed(saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if key.endswith("head_components")))
    save_file(tensors, path)
    with pytest.raises(ResiDualError, match="lack residual_peft_head_components"):
        clip_model().load_adapter(saved)


# --- what is refused, in words


def test_mixed_models_are_refused_by_name(saved: Path) -> None:
    with pytest.raises(ValueError, match="'RESIDUAL_PEFT' is not compatible with the `PeftMixed"):
        get_peft_model(clip_model(), ResiDualConfig(), mixed=True)
    mixed = get_peft_model(clip_model(), LoraConfig(target_modules=["q_proj"]), mixed=True)
    with pytest.raises(ValueError, match="'RESIDUAL_PEFT' is not compatible with the `PeftMixed"):
        mixed.add_adapter("mine", ResiDualConfig())
    with pytest.raises(ValueError, match="RESIDUAL_PEFT is not supported for mixed models"):
        PeftMixedModel.from_pretrained(clip_model(), saved)


def quantised(module: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


def test_int8_output_projections_are_refused() -> None:
    base = quantised(clip_model())
    message = r"output projection of layer 0 is a torch\.ao\..*Linear; wanted a plain nn.Linear"
    with pytest.raises(ResiDualError, match=message):
        get_peft_model(base, ResiDualConfig())
    assert not any(isinstance(m, ResiDualReadout) for m in base.modules())


def test_packed_weights_are_refused() -> None:
    """As bitsandbytes keeps them: a Linear whose weight is no floating point matrix."""
    base = clip_model()
    projection = base.vision_model.encoder.layers[1].self_attn.out_proj
    projection.weight = nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    message = r"of layer 1 keeps a \(24, 24\) weight of torch.int8; .* without quantisation"
    with pytest.raises(ResiDualError, match=message):
        get_peft_model(base, ResiDualConfig())


def test_int8_mlps_are_refused_where_they_are_adapted_without_data() -> None:
    base = clip_model()
    for layer in base.vision_model.encoder.layers:
        layer.mlp = quantised(layer.mlp)
    with pytest.raises(ResiDualError, match=r"the last map of layer0\.mlp is a torch"):
        get_peft_model(base, ResiDualConfig())
    model = get_peft_model(base, ResiDualConfig(units=("head",)))
    fit_bases(model, [pixels(IMAGES, seed=5)])  # exact in what the int8 model computes
    randomize_gains(model)
    with model.disable_adapter():
        before = run_tower(model, pixels())
    assert relative(run_tower(model.eval(), pixels()), before) > 1e-3


def test_an_int8_text_tower_is_nobodys_business() -> None:
    base = clip_model()
    base.text_model = quantised(base.text_model)
    model = get_peft_model(base, ResiDualConfig())
    fit_bases(model, [pixels(IMAGES, seed=5)])
    randomize_gains(model)
    assert torch.equal(run_tower(model.eval(), pixels()), run_tower(adapted(), pixels()))
    assert readout_state(model).directions.dtype == torch.float32
